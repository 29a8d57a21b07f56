"""What runs anywhere with numpy, Pillow and ONNX Runtime: no JAX, nothing of the rest of the package.

Bundles carry a copy of this folder (``convert.bundle``).
"""
