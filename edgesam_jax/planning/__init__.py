"""Estimates of a run's size and cost before it starts, and published figures of accelerators."""
