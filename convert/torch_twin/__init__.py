"""The models in PyTorch under the published names: the source of the exports, and the reference of the parity tests.

- ``model``: EdgeSAM and SAM; ``efficient_sam``: EfficientSAM;
- ``encoders``: RepViT, SAM's ViT and the small convolutional encoder; ``tiny_vit`` and ``efficient_vit``: the others;
- ``layers``: modules shared by the encoders; ``proposals``: the region proposal network;
- ``loading``: a twin with a checkpoint's weights.
"""
