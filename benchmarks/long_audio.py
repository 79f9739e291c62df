"""Long recordings against their parts: what windows and their merging cost in WER.

    OMP_NUM_THREADS=1 python benchmarks/long_audio.py --model MODEL --cuts CUTS --json long_audio.json

Cuts of one language and corpus, in their order, are put behind each other with half a second of silence, to recordings
of ``--minutes``. These are decoded as long audio, the cuts one by one, after one cut to warm up. A JSON record for each
language, and one for all: wer_long, wer_parts, words, seconds (with the silence), and the real-time factors: that of
the cuts is over their own audio, which has no silence between them.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np
import soundfile
import torch
from lhotse.cut import Cut

from tokenverse_pp.base.files import write_text
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.data.dataset import SAMPLING_RATE, load_inputs
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.decoding.long_form import decode_long
from tokenverse_pp.metrics.error_rates import error_rates
from tokenverse_pp.models.bundle import ModelBundle, load_model
from tokenverse_pp.tasks import transcript_of
from tokenverse_pp.tasks.transcript import is_task_token

SILENCE = 0.5  # seconds


def groups_of(cuts: Sequence[Cut], seconds: float) -> Iterator[Tuple[str, List[Cut]]]:
    """(language, cuts that fill a recording); what is left over at a language's end is left out."""
    by_kind: Dict[Tuple[str, str], List[Cut]] = defaultdict(list)
    for cut in cuts:
        by_kind[str(cut.supervisions[0].language), str((cut.custom or {}).get("corpus"))].append(cut)
    for (language, _), members in sorted(by_kind.items()):
        group: List[Cut] = []
        for cut in members:
            group.append(cut)
            if sum(c.duration + SILENCE for c in group) >= seconds:
                yield language, group
                group = []


def join(group: Sequence[Cut], path: Path) -> None:
    """Write the recording."""
    with soundfile.SoundFile(path, "w", SAMPLING_RATE, 1, "PCM_16") as file:
        for cut in group:
            file.write(load_inputs(cut).numpy())
            file.write(np.zeros(round(SILENCE * SAMPLING_RATE), dtype=np.float32))


def words_of(loaded: ModelBundle, audio: Any, options: SearchOptions) -> List[str]:
    """The plain words of a cut or file."""
    found = decode_long(loaded, audio, loaded.tasks, options)
    return [word for word in loaded.tokenizer.decode(found.tokens).split() if not is_task_token(word)]


def measure(loaded: ModelBundle, group: Sequence[Cut], options: SearchOptions, path: Path) -> Dict[str, Any]:
    """References, hypotheses and times of one recording and its parts."""
    join(group, path)
    reference = [word for cut in group for word in transcript_of(cut, loaded.tasks).words]
    started = time.monotonic()
    long = words_of(loaded, path, options)
    between = time.monotonic()
    parts = [word for cut in group for word in words_of(loaded, cut, options)]
    return {
        "long": (reference, long),
        "parts": (reference, parts),
        "audio": soundfile.info(str(path)).duration,
        "audio_parts": sum(cut.duration for cut in group),
        "time_long": between - started,
        "time_parts": time.monotonic() - between,
    }


def record(language: str, found: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """One line of the result."""
    long, parts = (error_rates([item[name] for item in found]) for name in ("long", "parts"))
    audio = sum(item["audio"] for item in found)
    return {
        "language": language,
        "recordings": len(found),
        "seconds": round(audio, 1),
        "words": long["words"],
        "wer_long": long["wer"],
        "wer_parts": parts["wer"],
        "ins_del_long": [long["ins"], long["del"]],
        "ins_del_parts": [parts["ins"], parts["del"]],
        "rtf_long": sum(item["time_long"] for item in found) / audio,
        "rtf_parts": sum(item["time_parts"] for item in found) / sum(item["audio_parts"] for item in found),
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--encoder", default="", help="where the pretrained encoder is")
    parser.add_argument("--cuts", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2.0, help="of a recording")
    parser.add_argument("--most", type=int, default=1000, help="recordings, taken evenly from all")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(args.model, args.encoder)
    options = SearchOptions()
    found: Dict[str, List[Dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        groups = list(groups_of(list(read_cuts(args.cuts)), 60 * args.minutes))
        words_of(loaded, groups[0][1][0], options)
        for language, group in groups[:: math.ceil(len(groups) / args.most)]:
            found[language].append(measure(loaded, group, options, Path(folder) / "long.wav"))
    every = [item for items in found.values() for item in items]
    lines = [json.dumps(record(name, items)) for name, items in [*found.items(), ("all", every)]]
    write_text(args.json, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
