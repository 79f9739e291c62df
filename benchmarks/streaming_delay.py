"""What streams tell of cuts: how late, and whether it is what the full pass says (a part of `streaming.py`).

Delays are in audio: seconds heard when it was told, less the reference. Time to compute comes on top (`median_ms`).
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from lhotse.cut import Cut

from tokenverse_pp.data.dataset import SAMPLING_RATE, load_inputs
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.decoding.constraints import constraints_for
from tokenverse_pp.decoding.recognizer import search_frames
from tokenverse_pp.decoding.streaming.transcriber import StreamingTranscriber
from tokenverse_pp.tasks.transcript import turns_of

SILENCE = 1.0  # seconds behind each cut: an endpoint is told by what does not follow
COLLAR = 1.0  # seconds between a task token's own time and its reference
PUSH = 320  # samples
REFERENCES = {
    "word": "the end of the frame at which its last piece was written (the cuts have no word times)",
    "[ENDP]": "end of the supervision",
    "[SCD]": "start of the next speaker's supervision",
}


class Told(NamedTuple):
    """A word or task token: its own start and end, and the audio heard when it was first told, and when for good."""

    text: str
    start: float
    end: float
    first: float
    final: float


def told_of(transcriber: StreamingTranscriber, audio: torch.Tensor) -> Iterator[Told]:
    """What a stream tells before it is closed."""
    stream = transcriber.open()
    first: Dict[Tuple[str, float], float] = {}
    for start in range(0, len(audio), PUSH):
        for event in transcriber.push(stream, audio[start : start + PUSH]):
            for word in event.words:
                seen = first.setdefault((word.text, word.start), event.time)
                if event.kind != "partial":
                    yield Told(word.text, word.start, word.end, seen, event.time)


def references(cut: Cut, token: str) -> List[float]:
    """When a task token should come, in seconds."""
    turns = turns_of(cut)
    if token == "[ENDP]":
        return [turn.end for turn in turns if turn.custom.get("endpoint")]
    return [after.start for before, after in zip(turns, turns[1:]) if before.speaker != after.speaker]


def pair(told: Sequence[Told], times: Sequence[float]) -> List[Tuple[Told, float]]:
    """Each reference with the nearest token that no other one has, within the collar."""
    left, pairs = list(told), []
    for time in times:
        near = min(left, key=lambda one: abs(one.start - time), default=None)
        if near is not None and abs(near.start - time) <= COLLAR:
            left.remove(near)
            pairs.append((near, time))
    return pairs


def measure_delays(transcriber: StreamingTranscriber, cuts: Sequence[Cut]) -> List[Dict[str, Any]]:
    """A record for words, ``[ENDP]`` and ``[SCD]``: median and 90th percentile of the delay, first told and final."""
    found: Dict[str, List[Tuple[Told, float]]] = {name: [] for name in REFERENCES}
    wanted = dict.fromkeys(REFERENCES, 0)
    for cut in cuts:
        audio = load_inputs(cut, convert=True)
        told = list(told_of(transcriber, torch.cat([audio, torch.zeros(int(SILENCE * SAMPLING_RATE))])))
        found["word"] += [(one, one.end) for one in told if not one.text.startswith("[")]
        for token, task in (("[ENDP]", "endp"), ("[SCD]", "scd")):
            if task in labelled_tasks(cut):
                times = references(cut, token)
                wanted[token] += len(times)
                found[token] += pair([one for one in told if one.text == token], times)
    wanted["word"] = len(found["word"])
    records = []
    for name, pairs in found.items():
        record: Dict[str, Any] = {
            "what": "delay",
            "of": name,
            "reference": REFERENCES[name],
            "references": wanted[name],
            "told": len(pairs),
        }
        for when in ("first", "final"):
            delays = [getattr(one, when) - time for one, time in pairs]
            for key, share in (("median", 50), ("p90", 90)):
                record[f"{when}_{key}_s"] = float(np.percentile(delays, share)) if delays else None
        records.append(record)
    return records


@torch.no_grad()
def masked_text(transcriber: StreamingTranscriber, audio: torch.Tensor) -> str:
    """What the same search finds in the output of the masked full pass."""
    loaded, options = transcriber.loaded, transcriber.options
    model, names = loaded.model, loaded.tasks.names
    active = torch.tensor([loaded.tasks.mask(names)], dtype=torch.float32)
    out, lens = model.encode(audio[None], torch.tensor([len(audio)]), active, chunks=options.chunks)
    rules = constraints_for(loaded.tasks, names, loaded.tokenizer)
    ((best,),) = search_frames(model.predictor, model.joiner, out, lens, options.search, rules)
    return loaded.tokenizer.decode(best.tokens)


def measure_agreement(transcriber: StreamingTranscriber, cuts: Sequence[Cut]) -> Dict[str, Any]:
    """How many cuts give the same text as a stream and in the masked full pass."""
    same = 0
    for cut in cuts:
        audio = load_inputs(cut, convert=True)
        stream = transcriber.open()
        for start in range(0, len(audio), PUSH):
            transcriber.push(stream, audio[start : start + PUSH])
        same += transcriber.close(stream)[-1].text == masked_text(transcriber, audio)
    return {"what": "agreement", "cuts": len(cuts), "same": same}
