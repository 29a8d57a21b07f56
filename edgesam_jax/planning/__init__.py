"""A run before it starts: its size, its cost, and the accelerators it may run on."""
