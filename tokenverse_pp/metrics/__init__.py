"""Scores as pure functions of words, positions, times and phrases; they know nothing of the package."""
