"""The image encoders, and the neck that RepViT, TinyViT and EfficientViT share."""
