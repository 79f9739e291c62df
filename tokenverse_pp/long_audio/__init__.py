"""Recordings of any length: decoded in overlapping windows, in constant memory, and merged into one hypothesis."""

from tokenverse_pp.long_audio.decode import decode_long
from tokenverse_pp.long_audio.merge import Merger, Window

__all__ = ["Merger", "Window", "decode_long"]
