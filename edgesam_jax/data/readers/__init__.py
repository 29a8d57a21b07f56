"""One module per format that photos and masks come in; each gives a ``Source``."""
