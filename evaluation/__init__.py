"""Scores and reports of trained systems: `python -m evaluation report EXPERIMENT.yaml`."""
