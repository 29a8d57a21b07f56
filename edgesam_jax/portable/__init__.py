"""The predictor for ONNX files. Needs numpy, Pillow and ONNX Runtime, but no JAX and no other part of the package.

``convert.bundle`` copies this folder into bundles.
"""
