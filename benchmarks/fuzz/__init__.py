"""Thousands of damaged inputs, and what the commands and the Python API do with them."""
