"""Read audio of any container (`read_audio`, `AudioInput`)."""

from tokenverse_pp.data.audio.containers import ENDINGS
from tokenverse_pp.data.audio.reader import AudioInput, check_whole, read_audio
from tokenverse_pp.data.audio.source import Source

__all__ = ["ENDINGS", "AudioInput", "Source", "check_whole", "read_audio"]
