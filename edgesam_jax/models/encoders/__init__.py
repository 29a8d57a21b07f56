"""The image encoders, and the neck that three of them share."""
