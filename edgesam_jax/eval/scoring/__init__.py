"""Photos in, overlaps out: protocols, systems under test, average precision."""
