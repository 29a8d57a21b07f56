"""Watchers of a training run: each does one thing at its turn in ``train.loop``, and owns the state for it."""
