"""Reports of an evaluation for people: aggregates, tables, plots and contact sheets."""
