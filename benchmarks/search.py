"""Speed of the search on made-up encoder output of a known difficulty, beside icefall's Python search.

    OMP_NUM_THREADS=1 python benchmarks/search.py --json search.json --markdown
    OMP_NUM_THREADS=1 python benchmarks/search.py --encoder --compare 500 \\
        --icefall CHECKOUT --icefall-python K2ENV/bin/python --json search.json --fill benchmarks/results/search.md

One JSON record a line: peer, method, beam, batch, dtype, utt_per_s, rtf (seconds of search a second of audio),
search_share (of encoder + search, with a wav2vec2-base of random weights on as much audio; null without ``--encoder``),
agreement (share of utterances with the same best hypothesis as ``agreement_with``: icefall's search at that beam, else
our float32), speedup (over icefall's search at that beam and batch), and the sizes: 500 frames (10 s) an utterance,
vocabulary 500, dimensions 512, about 140 tokens an utterance. ``--compare N`` adds one record on N utterances.

icefall needs k2, and so often another interpreter and version of torch than ours; each record says which.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from include import fill
from search_cases import Case, timed, versions

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_text
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.recognizer import search_frames
from tokenverse_pp.losses import k2_available

HERE = Path(__file__).resolve().parent
Record = Dict[str, Any]
Best = List[Sequence[int]]
MARKS = "<!-- search table: begin -->", "<!-- search table: end -->"
Key = Tuple[str, int, int]  # method, beam, batch


def best_of(case: Case, first: int, end: int, options: SearchOptions) -> List[Hypothesis]:
    """The best hypothesis of some utterances of the case."""
    inputs = case.encoder_out[first:end], case.lens(end - first)
    return [best for best, *_ in search_frames(case.predictor, case.joiner, *inputs, options)]


def grid(args: argparse.Namespace) -> Iterator[Tuple[int, SearchOptions]]:
    """Batch and options of each run of ours; float32 first."""
    for dtype, batch in itertools.product(args.dtype, args.batch):
        yield batch, SearchOptions("greedy", joiner_dtype=dtype)
        for beam in args.beam:
            yield batch, SearchOptions("beam", beam, joiner_dtype=dtype)
        if dtype == "float32":
            for beam in args.beam:
                yield batch, SearchOptions("full_beam", beam, max_symbols=args.max_symbols, joiner_dtype=dtype)
                if k2_available():
                    yield batch, SearchOptions("k2_fast_beam", beam, joiner_dtype=dtype)


def run_icefall(case: Case, args: argparse.Namespace) -> Dict[str, Any]:
    """What `search_icefall.py` wrote (raises UserError where it cannot run)."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(case.state(), f"{folder}/case.pt")
        command = [args.icefall_python, str(HERE / "search_icefall.py"), "--icefall", str(args.icefall.resolve())]
        command += ["--case", f"{folder}/case.pt", "--output", f"{folder}/found.json"]
        for name in ("batch", "beam", "repeats", "compare"):
            value = getattr(args, name)
            command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"--icefall {args.icefall}: its search did not run in {args.icefall_python}: {reason}")
        return json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))


def encoder_seconds(seconds: float, repeats: int) -> float:
    """Processor seconds that a wav2vec2-base (95 M parameters, random weights, float32) takes for one utterance."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    model = Wav2Vec2Model(Wav2Vec2Config()).eval()
    audio = torch.randn(1, int(16000 * seconds))
    with torch.inference_mode():
        return timed(lambda: model(audio), repeats)["cpu_seconds"]


def agreement(ours: Best, theirs: Best) -> float:
    """Share of utterances with the same tokens."""
    return sum(list(a) == list(b) for a, b in zip(ours, theirs)) / len(ours)


def compare(case: Case, theirs: Sequence[Sequence[Any]], batch: int) -> Record:
    """Our beam search against icefall's results, at beam 4 in float32."""
    options, size = SearchOptions("beam", 4, joiner_dtype="float32"), case.predictor.context_size
    ours = [h for i in range(0, len(theirs), batch) for h in best_of(case, i, min(i + batch, len(theirs)), options)]
    pairs = list(zip(ours, theirs))
    same = [(a.log_prob, log_prob) for a, (tokens, log_prob) in pairs if list(a.tokens) == tokens]
    gains = [a.score - b / (len(tokens) + size) for a, (tokens, b) in pairs if list(a.tokens) != tokens]
    return {
        "compared": len(pairs),
        "agreement": len(same) / len(pairs),
        "largest_log_prob_difference": max((abs(a - b) for a, b in same), default=0.0),
        "differing": len(gains),
        "differing_where_ours_scores_higher": sum(gain > 0 for gain in gains),
    }


class Run:
    """The records of a run."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.case = Case(args.frames, max([*args.batch, args.compare]), args.vocab_size, args.dim, args.seed)
        self.audio = args.frames * args.frame_shift  # seconds an utterance
        self.encoder = encoder_seconds(self.audio, args.repeats) if args.encoder else None
        self.records: List[Record] = []
        self.found: Dict[Key, Tuple[str, Best]] = {}  # what others are compared with
        self.speed: Dict[Key, float] = {}  # utterances a second of icefall

    def record(self, peer: str, options: Dict[str, Any], found: Best, measured: Dict[str, Any]) -> None:
        """Add one record, and say it."""
        batch, method = options["batch"], options["method"]
        search = measured["cpu_seconds"] / batch
        key = ("greedy" if method == "greedy" else "beam", options["beam"], batch)
        rate = batch / measured["seconds"]
        if peer == "icefall":
            self.found[key], self.speed[key] = ("icefall", found), rate
        elif method in ("greedy", "beam") and key not in self.found:
            self.found[key] = ("tokenverse_pp float32", found)
        # full_beam searches another model than all others: that of several symbols a frame.
        with_whom, expected = self.found[key] if key in self.found and method != "full_beam" else (None, found)
        record = {
            "peer": peer,
            **options,
            "utt_per_s": rate,
            "rtf": measured["seconds"] / (batch * self.audio),
            "search_share": search / (search + self.encoder) if self.encoder else None,
            "agreement": agreement(found, expected) if with_whom else None,
            "agreement_with": with_whom,
            "speedup": rate / self.speed[key] if key in self.speed else None,
            **measured,
            "tokens": sum(map(len, found)) / batch,
            "frames": self.args.frames,
            "vocab_size": self.args.vocab_size,
            "dim": self.args.dim,
        }
        self.records.append(record)
        print(row(record), file=sys.stderr)

    def icefall(self) -> None:
        """Run icefall's searches."""
        theirs = run_icefall(self.case, self.args)
        for run in theirs["runs"]:
            options = {key: run.pop(key) for key in ("method", "beam", "batch")}
            found = [tokens for tokens, _ in run.pop("found")]
            self.record("icefall", {**options, "dtype": "float32"}, found, run)
        if theirs["compared"]:
            result = {"peer": "icefall", "method": "beam", "beam": 4, **compare(self.case, theirs["compared"], 16)}
            self.records.append(result)
            print(json.dumps(result), file=sys.stderr)

    def ours(self) -> None:
        """Run our searches."""
        for batch, options in grid(self.args):
            measured = timed(lambda: best_of(self.case, 0, batch, options), self.args.repeats)  # noqa: B023 (at once)
            found = [list(h.tokens) for h in best_of(self.case, 0, batch, options)]
            named = {"method": options.method, "beam": options.width, "batch": batch, "dtype": options.joiner_dtype}
            self.record("tokenverse_pp", named, found, {**measured, **versions()})


COLUMNS = (
    "peer",
    "method",
    "beam",
    "batch",
    "dtype",
    "torch",
    "utt_per_s",
    "rtf",
    "search_share",
    "agreement",
    "speedup",
)


def row(record: Record) -> str:
    """A record as a row of a Markdown table."""
    cells = []
    for name in COLUMNS:
        value = record.get(name)
        cells.append("" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value))
    return f"| {' | '.join(cells)} |"


def table(records: Sequence[Record]) -> str:
    """The speeds as a Markdown table, and the comparison with icefall as a sentence."""
    rows = [row(record) for record in records if "utt_per_s" in record]
    text = "\n".join([f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *rows]) + "\n"
    for r in records:
        if "compared" in r:
            text += (
                f"\nOf {r['compared']} utterances {r['agreement']:.1%} have icefall's best hypothesis "
                "(beam 4, float32). "
                f"Their log-probabilities differ by at most {r['largest_log_prob_difference']:.1e}. "
                f"Where the hypotheses differ ({r['differing']}), ours scores higher "
                f"{r['differing_where_ours_scores_higher']} times.\n"
            )
    return text


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here, one a line")
    parser.add_argument("--fill", type=Path, metavar="FILE", help="put the table between the marks in this file")
    parser.add_argument("--markdown", action="store_true", help="print a table instead of the records")
    parser.add_argument("--icefall", type=Path, metavar="CHECKOUT", help="a checkout of icefall to run too")
    parser.add_argument("--icefall-python", default=sys.executable, help="an interpreter with k2 (default: this one)")
    parser.add_argument(
        "--compare", type=int, default=0, metavar="N", help="utterances to compare with icefall's beam 4"
    )
    parser.add_argument("--encoder", action="store_true", help="measure a 95 M encoder too, for search_share")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--beam", type=int, nargs="+", default=[1, 4, 8], help="of the beam searches")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="of the joiner's products")
    parser.add_argument("--max-symbols", type=int, default=3, help="of full_beam")
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--frame-shift", type=float, default=0.02, help="seconds")
    parser.add_argument("--vocab-size", type=int, default=500)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    if args.compare and not args.icefall:
        raise UserError("--compare needs --icefall: there is nothing else to compare with")
    run = Run(args)
    if args.icefall:
        run.icefall()
    run.ours()
    lines = "".join(json.dumps(record) + "\n" for record in run.records)
    if args.json:
        write_text(args.json, lines)
    if args.fill:
        fill(args.fill, MARKS, table(run.records))
    if args.markdown:
        sys.stdout.write(table(run.records))
    elif not args.json:
        sys.stdout.write(lines)


if __name__ == "__main__":
    with report_errors():
        main()
