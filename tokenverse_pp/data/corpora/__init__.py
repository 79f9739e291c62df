"""Corpora turned into labelled cuts, through lhotse's recipes where there are any."""
