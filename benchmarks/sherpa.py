"""Exports for sherpa-onnx, run by its stock wheel, beside torch and the runtime: tokens, scores and speed.

    OMP_NUM_THREADS=1 python benchmarks/sherpa.py --model tokenverse_pp/pretrained/human_speech \\
        --encoder data/whisper-base --cuts data/human_speech/cuts_test.jsonl.gz --decoded exp/sherpa.jsonl \\
        --json benchmarks/results/sherpa.json --markdown benchmarks/results/sherpa.md

Every cut on its own, on one thread, all tasks, greedy search; streams in chunks of 640 ms with 4 chunks to their left.
Audio is read before the clock starts, and the ways take turns at each cut, so that whatever else the machine does slows
all of them alike. One record a way: share of cuts with the very tokens of ``beside``, WER, F1 of speaker changes,
endpoints and entities, accuracy of languages, and real-time factor (seconds of decoding a second of audio).

Cuts are decoded in a random order (seed 0). What ``--decoded`` holds is not decoded again, and with ``--minutes`` the
run stops there: the records are those of the cuts that every way has decoded, a random sample of the manifest.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from include import markdown_table

from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_text
from tokenverse_pp.base.options import DecodeOptions, SearchOptions
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.data.dataset import load_inputs
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.decoding.recognizer import Recognizer, search
from tokenverse_pp.evaluation.scoring import score_hypotheses
from tokenverse_pp.models.bundle import ModelBundle, load_model
from tokenverse_pp.onnx import from_sherpa
from tokenverse_pp.onnx.export import ExportOptions, export_onnx
from tokenverse_pp.onnx.sherpa_export import LEVEL, CtcGraph, chosen_sets, normalised
from tokenverse_pp.runtime import Runtime, StreamingRuntime
from tokenverse_pp.tasks.result import Transcript

Record = Dict[str, Any]
Found = Tuple[List[str], List[float]]  # pieces and their times


class Way(NamedTuple):
    """One way to decode; ``beside`` is the one whose tokens it should have."""

    name: str
    decode: Callable[[np.ndarray], Found]
    beside: Optional[str] = None


def ctc_ways(loaded: ModelBundle, folder: Path) -> List[Way]:
    """The form ``ctc``: the best path of the CTC head in torch, and in sherpa-onnx."""
    import sherpa_onnx

    options = ExportOptions(form="ctc")
    export_onnx(loaded, folder / "ctc", options)
    recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(
        model=str(folder / "ctc" / "model.onnx"), tokens=str(folder / "ctc" / "tokens.txt")
    )
    (tasks,) = chosen_sets(loaded, options, "suppress")
    normalises = bool(getattr(loaded.model.encoder.backbone, "normalise", False))

    def best_path(audio: np.ndarray, level: float = 1.0) -> Found:
        with torch.inference_mode():
            best = CtcGraph(loaded.model, tasks, level)(torch.from_numpy(audio)[None])[0].argmax(-1).tolist()
        at = [i for i, token in enumerate(best) if token and (i == 0 or best[i - 1] != token)]
        shift = loaded.model.encoder.output_frame_shift
        return loaded.tokenizer.pieces([best[i] for i in at]), [i * shift for i in at]

    def sherpa(audio: np.ndarray) -> Found:
        stream = recognizer.create_stream()
        stream.accept_waveform(SAMPLE_RATE, audio)
        recognizer.decode_stream(stream)
        return [token.replace(" ", "▁") for token in stream.result.tokens], list(stream.result.timestamps)

    return [
        Way("torch, CTC head", best_path),
        Way(
            "torch, CTC head, samples of sherpa-onnx", lambda x: best_path(normalised(x), 1.0 if normalises else LEVEL)
        ),
        Way("sherpa-onnx, ctc", sherpa, "torch, CTC head, samples of sherpa-onnx"),
    ]


def transducer_ways(loaded: ModelBundle, folder: Path) -> List[Way]:
    """Greedy search of the transducer, in torch and in `tokenverse_pp.runtime`."""
    export_onnx(loaded, folder / "runtime")
    runtime, greedy = Runtime(folder / "runtime"), SearchOptions("greedy")
    shift = loaded.model.encoder.output_frame_shift

    def found(best: Any) -> Found:
        return loaded.tokenizer.pieces(best.tokens), [frame * shift for frame in best.frames]

    return [
        Way("torch, transducer", lambda audio: found(search(loaded, [audio], None, greedy)[0][0])),
        Way(
            "runtime, transducer", lambda audio: found(runtime.search([audio], None, greedy)[0][0]), "torch, transducer"
        ),
    ]


def online_ways(loaded: ModelBundle, folder: Path) -> List[Way]:
    """Forms ``online`` and ``prompt``: streams in torch (one pass with masks), in our runtime, in sherpa-onnx."""
    import sherpa_onnx

    greedy, chunks, shift = SearchOptions("greedy"), ChunkOptions(), loaded.model.encoder.output_frame_shift
    export_onnx(loaded, folder / "streaming", ExportOptions(chunks=chunks))
    recognizers = {}
    for form in ("online", "prompt"):
        export_onnx(loaded, folder / form, ExportOptions(form=form, chunks=chunks))
        recognizers[form] = sherpa_onnx.OnlineRecognizer.from_transducer(
            **{part: str(folder / form / f"{part}.onnx") for part in ("encoder", "decoder", "joiner")},
            tokens=str(folder / form / "tokens.txt"),
            num_threads=1,
        )
    recognizer = Recognizer(loaded, DecodeOptions(greedy, tasks=tuple(loaded.tasks.names), chunks=chunks))
    runtime = StreamingRuntime(folder / "streaming")

    def found(best: Any) -> Found:
        return loaded.tokenizer.pieces(best.tokens), [frame * shift for frame in best.frames]

    def in_torch(audio: np.ndarray) -> Found:
        (best,) = recognizer.recognize([torch.from_numpy(audio)])
        assert best is not None
        return found(best[0])

    def ours(audio: np.ndarray) -> Found:
        stream, total, size = runtime.open(options=greedy), runtime.frames_of(len(audio)), runtime.chunk_samples
        padded = np.concatenate([audio, np.zeros(2 * size, np.float32)])
        while stream.frames < total:
            chunk, missing = padded[stream.chunks * size :][:size], total - stream.frames
            stream.search.advance(runtime.encode_chunk(stream, chunk)[:missing])
        return found(stream.search.best()[0])

    def sherpa(form: str, audio: np.ndarray) -> Found:
        online = recognizers[form]
        stream = online.create_stream()
        stream.accept_waveform(SAMPLE_RATE, audio)
        stream.accept_waveform(SAMPLE_RATE, np.zeros(chunks.chunk_samples + SAMPLE_RATE // 25, np.float32))
        stream.input_finished()
        while online.is_ready(stream):
            online.decode_stream(stream)
        result = online.get_result_all(stream)
        return [token.replace(" ", "▁") for token in result.tokens], [max(0.0, t - shift) for t in result.timestamps]

    return [
        Way("torch, streaming", in_torch),
        Way("runtime, streaming", ours, "torch, streaming"),
        Way("sherpa-onnx, online", partial(sherpa, "online"), "torch, streaming"),
        Way("sherpa-onnx, prompt", partial(sherpa, "prompt"), "torch, streaming"),
    ]


def measure(args: argparse.Namespace) -> List[Record]:
    """Decode every cut in every way."""
    loaded = load_model(args.model, args.encoder)
    cuts = [cut for cut in read_cuts(args.cuts) if cut.duration <= args.longest][:: args.every]
    if not cuts:
        raise UserError(f"{args.cuts}: no cuts of up to {args.longest:g} s")
    random.Random(0).shuffle(cuts)
    done: Dict[Tuple[str, str], Record] = {}  # way and cut -> what was decoded
    if args.decoded and args.decoded.exists():
        lines = args.decoded.read_text(encoding="utf-8").splitlines()
        done = {(item["way"], item["cut"]): item for item in map(json.loads, lines)}
    with TemporaryDirectory() as folder:
        made = (transducer_ways, ctc_ways, online_ways)
        ways = [way for ways_of in made for way in ways_of(loaded, Path(folder))]
        warm, end = set(), time.monotonic() + 60 * args.minutes
        for number, cut in enumerate(cuts):
            left = [way for way in ways if (way.name, cut.id) not in done]
            if not left or time.monotonic() > end:
                continue
            audio = load_inputs(cut, convert=True).numpy()
            for way in left[number % len(left) :] + left[: number % len(left)]:
                if way.name not in warm:
                    way.decode(audio)
                    warm.add(way.name)
                started = time.perf_counter()
                pieces, times = way.decode(audio)
                item = {"way": way.name, "cut": cut.id, "seconds": time.perf_counter() - started}
                done[way.name, cut.id] = {**item, "pieces": pieces, "times": times}
                if args.decoded:
                    with open(args.decoded, "a", encoding="utf-8") as file:
                        file.write(json.dumps(done[way.name, cut.id], ensure_ascii=False) + "\n")
    cuts = [cut for cut in cuts if all((way.name, cut.id) in done for way in ways)]
    if not cuts:
        raise UserError(f"--minutes {args.minutes:g}: not enough for a cut")
    return [record(way, done, cuts, loaded) for way in ways]


def record(way: Way, done: Dict[Tuple[str, str], Record], cuts: Sequence[Any], loaded: ModelBundle) -> Record:
    """What is told of one way."""
    transcripts: List[Transcript] = []
    mine, theirs = ([done[name, cut.id] for cut in cuts] for name in (way.name, way.beside or way.name))
    for cut, item in zip(cuts, mine):
        pieces, times = item["pieces"], item["times"]
        result = {"tokens": [piece.replace("▁", " ") for piece in pieces], "timestamps": times}
        transcripts.append(from_sherpa(result, duration=cut.duration, name=cut.id))
    scores = score_hypotheses(cuts, [transcript.to_record() for transcript in transcripts], loaded.tasks)
    total = sum(cut.duration for cut in cuts)
    return {
        "way": way.name,
        "beside": way.beside,
        "cuts": len(cuts),
        "audio_seconds": round(total, 1),
        "equal": sum(a["pieces"] == b["pieces"] for a, b in zip(mine, theirs)) / len(cuts),
        "wer": scores["wer"]["all"]["wer"],
        "scd": scores["scd"]["text"]["f1"],
        "endp": scores["endp"]["text"]["f1"],
        "ner": scores["ner"]["exact"]["f1"],
        "lid": scores["lid"]["accuracy"],
        "rtf": sum(item["seconds"] for item in mine) / total,
        "torch": torch.__version__,
        "sherpa_onnx": __import__("sherpa_onnx").__version__,
    }


COLUMNS = {
    "way": "{way}",
    "same tokens as": "{same}",
    "WER": "{wer:.2%}",
    "SCD F1": "{scd:.1%}",
    "ENDP F1": "{endp:.1%}",
    "NER F1": "{ner:.1%}",
    "LID": "{lid:.1%}",
    "real-time factor": "{rtf:.4f}",
}


def table(records: Sequence[Record]) -> str:
    """Markdown, a row a record."""
    first = records[0]
    rows = [{**item, "same": f"{item['equal']:.1%} of {item['beside']}" if item["beside"] else ""} for item in records]
    about = (
        f"{first['cuts']} cuts, {first['audio_seconds'] / 60:.1f} minutes; one cut at a time, one thread; torch "
        f"{first['torch']}, sherpa-onnx {first['sherpa_onnx']}."
    )
    return "\n".join([*markdown_table(COLUMNS, rows), "", about]) + "\n"


def parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model folder, checkpoint or experiment")
    parser.add_argument(
        "--encoder", default="", help="where the pretrained encoder is, if not where it was in training"
    )
    parser.add_argument("--cuts", required=True, help="cut manifest with audio and labels of all tasks")
    parser.add_argument("--every", type=int, default=1, help="take every so many-th cut [1]")
    parser.add_argument("--longest", type=float, default=30.0, help="leave out cuts of more seconds than this [30]")
    parser.add_argument("--minutes", type=float, default=1e9, help="of decoding; then no cut is started [no limit]")
    parser.add_argument("--decoded", type=Path, help="keep what was decoded here, and take from here what was before")
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
