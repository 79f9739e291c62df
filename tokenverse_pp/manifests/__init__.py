"""Manifests of labelled speech: schema, validation, statistics, corpus preparation."""
