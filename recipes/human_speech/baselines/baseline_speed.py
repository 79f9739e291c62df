"""Seconds on one thread: every stage of the cascade, and one pass of ours, over the same audio."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from cascade import ChangeRule, EndRule, change_tokens, end_tokens, entity_tokens, to_record
from lhotse import CutSet
from lhotse.cut import Cut
from turns_pass import WINDOWS, SileroVad, Voice, turn_record
from whisper_pass import Clock, Whisper, likeliest
from whisper_words import spoken_words

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.access import check_access
from tokenverse_pp.data.manifests import write_cuts

DECODE = Path(__file__).resolve().parents[2] / "decode.py"
ALL = ("asr", "scd", "endp", "ner", "lid")
ALONE = 0.01  # seconds of audio in a batch: no two cuts fit
LISTS = ("--beam", "16", "--lm-scale", "0.5", "--lm-bonus", "2")  # how RESULTS.md decodes with lists of words
# Any thresholds: comparing a number with another costs the same.
CHANGE, END = ChangeRule(distance=0.2), EndRule(pause=0.3)


def measure_cascade(cuts: Sequence[Cut], folder: Path, compute_type: str, allowed: Sequence[str]) -> Dict[str, Any]:
    """Wall-clock and CPU seconds by stage, summed over the cuts; models are loaded and warm before.

    ``language``: log-mel, Whisper's encoder and one step of its decoder; ``words``: its beam search and the times of
    the words; ``vad``: silero-vad; ``voices``: Resemblyzer at one window on both sides of every candidate; ``rules``:
    numbers, entities, thresholds, the record. Reading the audio is not counted.
    """
    whisper, vad, voice = Whisper(folder, compute_type), SileroVad(), Voice()
    seconds: Dict[str, Dict[str, float]] = {}

    def run(cut: Cut) -> None:
        check_access(cut)
        audio = cut.load_audio()[0]
        whisper.forget()
        clock = Clock()
        laps = {}
        language = likeliest(whisper.languages(audio), allowed)
        laps["language"] = clock.lap()
        segments = whisper.transcribe(audio, language)
        laps["words"] = clock.lap()
        words = spoken_words(segments, language)
        laps["rules"] = clock.lap()
        turn = turn_record(vad, voice, audio, words, WINDOWS[CHANGE.window : CHANGE.window + 1])
        laps.update(turn.pop("seconds"))
        clock.lap()
        rule = ChangeRule(CHANGE.distance, window=0)
        tokens = entity_tokens(words, language) + change_tokens(turn["places"], rule) + end_tokens(turn, words, END)
        to_record(cut.id, words, tokens, ALL, language)
        laps["rules "] = clock.lap()
        for stage, both in laps.items():
            total = seconds.setdefault(stage.strip(), {"wall": 0.0, "cpu": 0.0})
            for kind, value in both.items():
                total[kind] += value

    run(cuts[0])
    seconds.clear()
    for cut in cuts:
        run(cut)
    return seconds


def measure_ours(cuts: Sequence[Cut], model: Path, encoder: str, words: Optional[Path], folder: Path) -> Dict[str, Any]:
    """What ``decode.py --threads 1`` says of its speed from audio, all tasks, cut by cut and in batches of 120 s.

    With ``words``, the folder that word_lists.py made, also with its lists and a wider beam.
    """
    manifest = folder / "cuts.jsonl.gz"
    write_cuts(CutSet.from_cuts(cuts), manifest)
    runs: Dict[str, Tuple[float, List[str]]] = {"one_by_one": (ALONE, []), "batches": (120.0, [])}
    if words is not None:
        lists = ["--lm", str(words), *LISTS]
        runs.update({"words_one_by_one": (ALONE, lists), "words_batches": (120.0, lists)})
    found: Dict[str, Any] = {}
    for name, (most, more) in runs.items():
        size = ["--max-duration", str(most)]
        command = [sys.executable, str(DECODE), "--model", str(model), "--encoder", encoder, "--cuts", str(manifest)]
        command += ["--output-dir", str(folder / name), "--threads", "1", "--no-report", "--no-resume", *size, *more]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{DECODE.name} failed: {last}")
        speed = json.loads((folder / name / "scores.json").read_text(encoding="utf-8"))["speed"]
        found[name] = {key: speed[key] for key in ("audio_seconds", "wall_seconds", "rtf")}
    return found
