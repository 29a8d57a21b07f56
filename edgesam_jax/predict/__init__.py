"""Predict masks from a photo and prompts."""
