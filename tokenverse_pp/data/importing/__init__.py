"""Importers: annotation files of many formats as rows, and rows as labelled cuts."""
