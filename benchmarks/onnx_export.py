"""An exported model beside torch: hypotheses, word error rate, speed and size.

    OMP_NUM_THREADS=1 python benchmarks/onnx_export.py --model tokenverse_pp/pretrained/human_speech \\
        --encoder data/whisper-base --cuts data/human_speech_v2/cuts_test.jsonl.gz \\
        --json benchmarks/results/onnx.json --markdown benchmarks/results/onnx.md

``--limit 40`` for a quick look. Every cut is a batch of its own, on one thread: audio is read before the clock starts,
and torch and the exports take turns at each cut, so that whatever else the machine does slows all of them alike. One
record a way and method: share of cuts with the very tokens of torch (``equal``), WER, real-time factor (seconds of
decoding a second of audio; of the encoder with its log-mel alone as well), megabytes of what has to be deployed. (Not
called onnx.py, which would be what its own folder's scripts import in place of the package.)
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
import torch
from include import markdown_table

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_text
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.data.dataset import load_inputs
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.recognizer import search
from tokenverse_pp.evaluation.scoring import score_hypotheses
from tokenverse_pp.models.bundle import ModelBundle, load_model
from tokenverse_pp.onnx.export import ExportOptions, export_onnx, torch_frames
from tokenverse_pp.runtime import Runtime

Record = Dict[str, Any]
Decode = Callable[[np.ndarray, SearchOptions], Hypothesis]
Encode = Callable[[np.ndarray], Any]
TORCH = "torch"


class Way:
    """One way to decode, with what it found and how long it took."""

    def __init__(self, name: str, decode: Decode, encode: Encode, megabytes: float):
        self.name, self.decode, self.encode, self.megabytes = name, decode, encode, megabytes
        self.found: Dict[str, List[Hypothesis]] = {}
        self.seconds: Dict[str, float] = {}

    def run(self, audio: np.ndarray, method: str) -> None:
        """Decode one utterance."""
        started = time.perf_counter()
        best = self.decode(audio, SearchOptions(method))
        self.seconds[method] = self.seconds.get(method, 0.0) + time.perf_counter() - started
        self.found.setdefault(method, []).append(best)

    def run_encoder(self, audio: np.ndarray) -> None:
        """Encode one utterance."""
        started = time.perf_counter()
        self.encode(audio)
        self.seconds["encoder"] = self.seconds.get("encoder", 0.0) + time.perf_counter() - started


def torch_way(loaded: ModelBundle) -> Way:
    """The model in torch."""
    bytes_of = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    return Way(
        TORCH,
        lambda audio, options: search(loaded, [audio], None, options)[0][0],
        lambda audio: torch_frames(loaded, [audio], loaded.tasks.names),
        bytes_of / 1e6,
    )


def onnx_way(loaded: ModelBundle, folder: Path, precision: str) -> Way:
    """An export of it, written into a folder."""
    export_onnx(loaded, folder / precision, ExportOptions(precision))
    runtime = Runtime(folder / precision)
    megabytes = sum(entry["bytes"] for entry in runtime.description.files.values()) / 1e6
    return Way(
        f"onnx {precision}",
        lambda audio, options: runtime.search([audio], None, options)[0][0],
        lambda audio: runtime.encode([audio], runtime.tasks.names),
        megabytes,
    )


def measure(args: argparse.Namespace) -> List[Record]:
    """Decode every cut in every way."""
    loaded = load_model(args.model, args.encoder)
    cuts = [cut for cut in read_cuts(args.cuts) if cut.duration <= args.longest][: args.limit]
    if not cuts:
        raise UserError(f"{args.cuts}: no cuts of up to {args.longest:g} s")
    with TemporaryDirectory() as folder:
        ways = [torch_way(loaded), *(onnx_way(loaded, Path(folder), name) for name in args.precision)]
        for number, cut in enumerate([cuts[0], *cuts]):
            audio = load_inputs(cut, convert=True).numpy()
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                way.run_encoder(audio)
                for method in args.method:
                    way.run(audio, method)
            if number == 0:  # the first one warms up
                for way in ways:
                    way.found, way.seconds = {}, {}
    seconds = sum(cut.duration for cut in cuts)
    return [record(way, ways[0], method, cuts, seconds, loaded) for method in args.method for way in ways]


def record(way: Way, torch_: Way, method: str, cuts: Sequence[Any], seconds: float, loaded: ModelBundle) -> Record:
    """What is told of one way with one method."""
    found, reference = way.found[method], torch_.found[method]
    equal = sum(ours.tokens == theirs.tokens for ours, theirs in zip(found, reference))
    shift = loaded.model.encoder.output_frame_shift
    records = []
    for cut, best in zip(cuts, found):
        tokens = (loaded.tokenizer.pieces(best.tokens), best.frames, best.log_probs, shift, None)
        transcript = loaded.tasks.reader.read_tokens(*tokens, best.score, cut.duration, cut.id)
        records.append(transcript.to_record())
    scores = score_hypotheses(cuts, records)
    return {
        "way": way.name,
        "method": method,
        "cuts": len(cuts),
        "audio_seconds": round(seconds, 1),
        "equal": equal / len(cuts),
        "wer": scores["wer"]["all"]["wer"],
        "rtf": way.seconds[method] / seconds,
        "rtf_encoder": way.seconds["encoder"] / seconds,
        "rtf_ratio": torch_.seconds[method] / way.seconds[method],
        "megabytes": round(way.megabytes, 1),
        "torch": torch.__version__,
        "onnxruntime": __import__("onnxruntime").__version__,
    }


COLUMNS = {
    "way": "{way}",
    "search": "{method}",
    "same tokens as torch": "{equal:.1%}",
    "WER": "{wer:.2%}",
    "real-time factor": "{rtf:.4f}",
    "of which encoder": "{rtf_encoder:.4f}",
    "times torch's speed": "{rtf_ratio:.2f}",
    "MB": "{megabytes:.1f}",
}


def table(records: Sequence[Record]) -> str:
    """Markdown, a row a record."""
    first = records[0]
    about = (
        f"{first['cuts']} cuts, {first['audio_seconds'] / 60:.1f} minutes; batches of 1, one thread; torch "
        f"{first['torch']}, onnxruntime {first['onnxruntime']}."
    )
    return "\n".join([*markdown_table(COLUMNS, records), "", about]) + "\n"


def parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model folder, checkpoint or experiment")
    parser.add_argument(
        "--encoder", default="", help="where the pretrained encoder is, if not where it was in training"
    )
    parser.add_argument("--cuts", required=True, help="cut manifest with audio and labels")
    parser.add_argument("--limit", type=int, default=None, help="take the first so many cuts")
    parser.add_argument("--longest", type=float, default=30.0, help="leave out cuts of more seconds than this")
    parser.add_argument("--precision", nargs="+", default=["float32", "float16", "int8"], help="of the exports")
    parser.add_argument("--method", nargs="+", default=["greedy", "beam"], help="of the search")
    parser.add_argument("--json", type=Path, help="write the records here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Measure, print the table, and write what is asked for."""
    args = parse(arguments)
    torch.set_num_threads(1)
    records = measure(args)
    if args.json:
        write_text(args.json, "".join(json.dumps(item) + "\n" for item in records))
    if args.markdown:
        write_text(args.markdown, table(records))
    print(table(records), end="")


if __name__ == "__main__":
    with report_errors():
        main()
