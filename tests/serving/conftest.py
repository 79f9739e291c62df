"""Serving needs websockets, which the oldest stack that the core runs on does without."""

from importlib.util import find_spec

if find_spec("websockets") is None:
    collect_ignore_glob = ["test_*.py"]
