"""Published weights: their names and layouts, ImageNet backbones, and which model a file contains."""
