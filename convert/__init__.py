"""Conversions between this project's checkpoints and other formats, one module per command.

- ``download``: fetch and verify published files;
- ``from_torch``, ``to_torch``: from and to files with the published names (.pth, .safetensors);
- ``to_onnx``, ``to_coreml``, ``to_litert``: exports, each compared with the JAX model before it is written;
- ``bundle``: an export with everything an app needs to ship it.

Below them: ``export`` (shared by the exports), ``coreml`` (Core ML packages) and ``torch_twin`` (the models in torch).
This package may import torch; ``edgesam_jax`` never imports this package.
"""
