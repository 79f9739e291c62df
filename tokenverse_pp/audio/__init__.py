"""Audio of any container -> samples: `read_audio`, `AudioInput`; and the audio backend of lhotse that is made of them."""

from tokenverse_pp.audio.containers import ENDINGS, Source
from tokenverse_pp.audio.reader import AudioInput, check_whole, read_audio

__all__ = ["ENDINGS", "AudioInput", "Source", "check_whole", "read_audio"]
