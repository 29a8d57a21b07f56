"""The parts that every export shares.

- ``common``: command line flags, the export job, checksums;
- ``encoder``, ``decoder``: torch modules written for the exporters, with folded weights and fixed prompt slots;
- ``split``: decoders in two graphs, in the forms of ``photo_maps`` with ``folded``, and of ``shared``; ``upscaling``;
- ``sam_form``: decoders as SAM's own ONNX export, for programs written for it;
- ``precision``: float16 and int8 weights in ONNX files (``int8_weights``); ``sensitivity`` finds the layers that int8
  costs most;
- ``half``: ONNX files that compute in float16;
- ``contract``: the inputs and outputs of an export, as JSON;
- ``gate``: compares an export with the JAX model, and refuses one that differs;
- ``bundle_docs``: README, licence note and check script of a bundle.
"""
