"""A photo and prompts in, masks out."""
