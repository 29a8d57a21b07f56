"""The model in PyTorch, under the published names: the way into the exporters, and the parity oracle of the tests."""
