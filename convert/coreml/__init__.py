"""Core ML packages: how they are made, what they consist of, and their evaluation without a Mac."""
