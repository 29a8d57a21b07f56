"""The training step: objectives, losses, the prompt loop, the optimiser."""
