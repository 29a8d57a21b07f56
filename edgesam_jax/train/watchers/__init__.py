"""Watchers of a training run: each has one task in ``train.loop``, and keeps the state for it."""
