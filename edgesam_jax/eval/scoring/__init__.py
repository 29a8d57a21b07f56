"""Score masks: protocols, the systems under test, overlap per instance, average precision, results on disk."""
