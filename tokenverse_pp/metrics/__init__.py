"""Metrics: pure functions of words, positions, times and phrases."""
