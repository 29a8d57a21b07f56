"""Prompt encoders and mask decoders: SAM's, and EfficientSAM's."""
