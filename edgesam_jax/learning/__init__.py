"""What one training step learns, and how: objectives, losses, the step, the optimiser."""
