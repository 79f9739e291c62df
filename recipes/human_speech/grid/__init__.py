"""Grids of experiments: which runs there are, running them, and what their results say."""
