"""One training run, or the runs of a study."""
