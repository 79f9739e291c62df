"""Where a turn might end: silero-vad's pauses, Whisper's gaps and punctuation, and how the voice differs around them.

One record a cut, as in `whisper_pass`. No threshold is applied here but the VAD's own of 0.5; the others are chosen by
`cascade_tuning.tune`.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple

import numpy as np
from lhotse.cut import Cut
from whisper_pass import Clock, read_records
from whisper_words import SpokenWord, spoken_words

from tokenverse_pp.base.config import SAMPLE_RATE
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.access import check_access
from tokenverse_pp.evaluation.endpoints import VAD_SAMPLES, VAD_THRESHOLD, SileroVad, silences

MIN_GAP = 0.1  # seconds between two words of Whisper, from which on the place between them is looked at
NEAR = 0.3  # seconds that a pause may be away from the word boundary that it belongs to
WINDOWS = (1.0, 1.6, 2.4)  # seconds of speech on either side whose voices are compared; Resemblyzer learnt on 1.6
MIN_VOICE = 0.3  # with less speech on a side no voice is compared
MEL_STEP = 0.01  # seconds

Span = Tuple[float, float]


class Voice:
    """Resemblyzer's speaker vectors.

    Raises:
        UserError: Resemblyzer is not installed.
    """

    def __init__(self) -> None:
        self.library = import_resemblyzer()
        self.encoder = self.library.VoiceEncoder("cpu", verbose=False)

    def mel(self, audio: np.ndarray) -> np.ndarray:
        """``(S,)`` -> ``(T, 40)`` at 10 ms, of audio at the loudness that the library wants."""
        loud = self.library.normalize_volume(audio, -30, increase_only=True) if np.any(audio) else audio
        return self.library.wav_to_mel_spectrogram(loud)

    def vector(self, mel: np.ndarray) -> np.ndarray:
        """``(T, 40)`` -> ``(256,)`` of length 1."""
        import torch

        with torch.no_grad():
            return self.encoder(torch.from_numpy(mel[None])).numpy()[0]


def import_resemblyzer() -> Any:
    """The package, with stand-ins for two imports that only its trimming of silence needs (unused here).

    webrtcvad 2.0.10 imports pkg_resources, which setuptools has dropped; SciPy has dropped ``ndimage.morphology``.
    """
    import scipy.ndimage

    morphology = types.ModuleType("scipy.ndimage.morphology")
    morphology.binary_dilation = scipy.ndimage.binary_dilation  # type: ignore[attr-defined]
    stand_ins = {"webrtcvad": types.ModuleType("webrtcvad"), "scipy.ndimage.morphology": morphology}
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        import resemblyzer
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'tokenverse_pp[baselines]'") from error
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
    return resemblyzer


def candidates(words: Sequence[SpokenWord], pauses: Sequence[Span]) -> List[Dict[str, Any]]:
    """Places between words at which something may end, in order.

    Each pause belongs to the word boundary nearest to its middle, if that is near. ``position``: the number of the
    word behind it; ``time``: the middle of its longest pause, or between the two words; ``end``: where speech ended;
    ``pause``: seconds (0 where the VAD heard none); ``gap``: seconds between the words as Whisper timed them;
    ``mark``: punctuation.
    """
    middles = [(a.end + b.start) / 2 for a, b in zip(words, words[1:])]
    longest: Dict[int, Span] = {}
    for start, end in pauses:
        if not middles:
            break
        index = int(np.argmin([abs(middle - (start + end) / 2) for middle in middles]))
        near = words[index].end - NEAR <= end and start <= words[index + 1].start + NEAR
        if near and end - start > longest.get(index, (0.0, 0.0))[1] - longest.get(index, (0.0, 0.0))[0]:
            longest[index] = (start, end)
    found = []
    for index, (before, after) in enumerate(zip(words, words[1:])):
        gap = after.start - before.end
        if index not in longest and gap < MIN_GAP and before.mark == "":
            continue
        start, end = longest.get(index, (middles[index], middles[index]))
        place = {"position": index + 1, "time": (start + end) / 2, "end": start, "pause": end - start}
        found.append({**{k: round(v, 3) for k, v in place.items()}, "gap": round(gap, 3), "mark": before.mark})
    return found


def distances(voice: Voice, mel: np.ndarray, place: Mapping[str, Any], windows: Sequence[float]) -> List[float]:
    """For each window the cosine distance of the voices before and behind a place; 0 with too little on a side."""
    end = round(place["end"] / MEL_STEP)
    start = round((place["end"] + place["pause"]) / MEL_STEP)
    result = []
    for window in windows:
        frames = round(window / MEL_STEP)
        sides = mel[max(0, end - frames) : end], mel[start : start + frames]
        if min(map(len, sides)) < MIN_VOICE / MEL_STEP:
            result.append(0.0)
        else:
            a, b = map(voice.vector, sides)
            result.append(round(1.0 - float(a @ b), 4))
    return result


def turn_record(
    vad: SileroVad, voice: Voice, audio: np.ndarray, words: Sequence[SpokenWord], windows: Sequence[float]
) -> Dict[str, Any]:
    """The candidates of one cut with their distances, the end of speech, and the seconds that each stage took."""
    clock = Clock()
    probabilities = vad.probabilities(audio)
    seconds = {"vad": clock.lap()}
    places = candidates(words, silences(probabilities))
    if places:
        mel = voice.mel(audio)
        for place in places:
            place["distances"] = distances(voice, mel, place, windows)
    seconds["voices"] = clock.lap()
    speech = np.flatnonzero(probabilities >= VAD_THRESHOLD)
    last = (speech[-1] + 1) * VAD_SAMPLES / SAMPLE_RATE if len(speech) else len(audio) / SAMPLE_RATE
    return {"places": places, "speech_end": round(min(last, len(audio) / SAMPLE_RATE), 3), "seconds": seconds}


def turns_pass(cuts: Iterable[Cut], whisper: Mapping[str, Mapping[str, Any]], output: Path, choice: str) -> int:
    """Append a record of each cut that has Whisper's words and is not in ``output`` yet; returns how many."""
    done = read_records(output)
    missing = [cut for cut in cuts if cut.id not in done and cut.id in whisper]
    if not missing:
        return 0
    vad, voice = SileroVad(), Voice()
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "a", encoding="utf-8") as file:
        for cut in missing:
            heard = whisper[cut.id]
            language = heard["language"][choice]
            words = spoken_words(heard["segments"][language], language)
            check_access(cut)
            record = turn_record(vad, voice, cut.load_audio()[0], words, WINDOWS)
            file.write(json.dumps({"id": cut.id, **record}) + "\n")
            file.flush()
    return len(missing)
