"""Runs: configuration, arms times seeds, the run folder and its report."""
