"""Bridges between this project's checkpoints and other formats.  May import torch; ``edgesam_jax`` never imports it."""
