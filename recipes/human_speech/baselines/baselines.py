#!/usr/bin/env python3
"""Whisper-base, and a cascade of models around it, on the clips of human_speech: decode, tune, score, time.

\b
python recipes/human_speech/baselines/baselines.py whisper --part test     # resumable; about 25 minutes of one CPU
python recipes/human_speech/baselines/baselines.py whisper --part dev
python recipes/human_speech/baselines/baselines.py score --ours exp/decode/hyps.jsonl   # turns, tuning, scores
python recipes/human_speech/baselines/baselines.py speed --words data/words   # on a machine that does nothing else
python recipes/human_speech/baselines/baselines.py tables                  # results.json -> README.md
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import click
from baseline_scores import CASCADES, WHISPER, cascade_hyps, counts, scored, whisper_hyps, write_counts, write_hyps
from baseline_speed import measure_cascade, measure_ours
from baseline_tables import fill
from cascade_tuning import tune
from lhotse.cut import Cut
from turns_pass import turns_pass
from whisper_pass import read_records, shuffled, whisper_pass
from whisper_weights import whisper_folder
from whisper_words import spoken_words

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_json
from tokenverse_pp.cli.groups import Group
from tokenverse_pp.data.hypotheses import read_hypotheses
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.training.checkpoints import git_commit, versions

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
MODEL = HERE.parents[2] / "tokenverse_pp" / "pretrained" / "human_speech"
LANGUAGES = ("cs", "en", "es", "fr", "it", "nl", "ru")
PACKAGES = ("faster-whisper", "ctranslate2", "silero-vad", "onnxruntime", "Resemblyzer", "num2words")


@click.group(cls=Group, help=__doc__, context_settings={"max_content_width": 100})
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("data/human_speech"),
    show_default=True,
    help="Folder of the prepared human-speech corpus.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("data/baselines"),
    show_default=True,
    help="Folder for models and intermediate results.",
)
@click.pass_context
def main(context: click.Context, data: Path, work: Path) -> None:
    """See the module's docstring."""
    context.obj = (data, work)


@main.command()
@click.option(
    "--part",
    type=click.Choice(["dev", "test"]),
    default="test",
    show_default=True,
    help="Part of the corpus to transcribe.",
)
@click.option(
    "--compute-type",
    type=click.Choice(["int8", "float32"]),
    default="int8",
    show_default=True,
    help="Number type of the Whisper model's weights.",
)
@click.option("--first", type=int, help="Transcribe only N cuts, drawn from all corpora.")
@click.pass_obj
def whisper(places: Any, part: str, compute_type: str, first: Optional[int]) -> None:
    """Decode with Whisper-base (of dev only what the cascade is tuned on: the cuts with turns)."""
    data, work = places
    cuts = list(read_cuts(data / f"cuts_{part}.jsonl.gz"))
    wanted = cuts if part == "test" else [cut for cut in cuts if has_turns(cut)]
    output = work / "whisper" / f"{part}-{compute_type}.jsonl"
    new = whisper_pass(wanted, whisper_folder(work / "whisper-base-ct2"), compute_type, output, LANGUAGES, first)
    click.echo(f"{new} cuts decoded, {len(read_records(output))} in {output}")


@main.command()
@click.option(
    "--compute-type",
    type=click.Choice(["int8", "float32"]),
    default="int8",
    show_default=True,
    help="Number type of the Whisper model's weights.",
)
@click.option("--ours", type=click.Path(path_type=Path), help="hyps.jsonl of a model of ours, scored beside them.")
@click.option(
    "--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="JSON file of the results."
)
@click.pass_obj
def score(places: Any, compute_type: str, ours: Optional[Path], results: Path) -> None:
    """Find turns, tune on dev, score on test: those cuts that Whisper has decoded."""
    data, work = places
    heard = {part: read_records(work / "whisper" / f"{part}-{compute_type}.jsonl") for part in ("dev", "test")}
    cuts = {part: [c for c in read_cuts(data / f"cuts_{part}.jsonl.gz") if c.id in heard[part]] for part in heard}
    turns = {}
    for part in heard:
        if not cuts[part]:
            raise UserError(f"{work}: nothing decoded yet; run: baselines.py whisper --part {part}")
        output = work / "turns" / f"{part}-{compute_type}.jsonl"
        turns_pass([cut for cut in cuts[part] if has_turns(cut)], heard[part], output, "seven")
        turns[part] = read_records(output)
    hyps = {name: whisper_hyps(cuts["test"], heard["test"], *how) for name, how in WHISPER.items()}
    tuned = {}
    for name, punctuation in CASCADES.items():
        rules, f1 = tune(cuts["dev"], listened(cuts["dev"], heard["dev"], turns["dev"]), punctuation)
        tuned[name] = {"rules": rules.as_dict(), "dev_f1": f1, "dev_cuts": len(cuts["dev"])}
        hyps[name] = cascade_hyps(cuts["test"], heard["test"], turns["test"], rules)
    if ours:
        by_id = {hyp["id"]: hyp for hyp in read_hypotheses(ours)}
        missing = [cut.id for cut in cuts["test"] if cut.id not in by_id]
        if missing:
            raise UserError(f"{ours}: no hypothesis of cut {missing[0]}")
        hyps["ours"] = [by_id[cut.id] for cut in cuts["test"]]
    rows = []
    for name, found in hyps.items():
        write_hyps(work / name, found)
        rows += counts(name, cuts["test"], found)
    write_counts(results.with_name("counts.csv"), rows)
    kept = {
        "cuts": len(cuts["test"]),
        "cuts_of_the_test_set": sum(1 for _ in read_cuts(data / "cuts_test.jsonl.gz")),
        "compute_type": compute_type,
        "seconds": spent(heard["test"], turns["test"]),
        "tuned": tuned,
        "systems": {name: scored(cuts["test"], found) for name, found in hyps.items()},
    }
    update(results, "scores", kept)


@main.command()
@click.option("--clips", type=click.IntRange(min=1), default=100, show_default=True, help="Number of clips to time.")
@click.option(
    "--model", type=click.Path(path_type=Path), default=MODEL, show_default=True, help="Model folder to compare with."
)
@click.option("--encoder", default="data/whisper-base", show_default=True, help="Folder of the pretrained encoder.")
@click.option("--words", type=click.Path(path_type=Path), help="Of word_lists.py: time ours with these lists, too.")
@click.option(
    "--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="JSON file of the results."
)
@click.pass_obj
def speed(places: Any, clips: int, model: Path, encoder: str, words: Optional[Path], results: Path) -> None:
    """Time every stage of the cascade on one thread, and one pass of ours from the same audio."""
    data, work = places
    cuts = shuffled(read_cuts(data / "cuts_test.jsonl.gz"))[:clips]
    folder = whisper_folder(work / "whisper-base-ct2")
    kept: Dict[str, Any] = {"clips": len(cuts), "audio_seconds": sum(cut.duration for cut in cuts)}
    kept["cascade"] = {kind: measure_cascade(cuts, folder, kind, LANGUAGES) for kind in ("int8", "float32")}
    kept["ours"] = measure_ours(cuts, model, encoder, words, work / "speed")
    update(results, "speed", kept)


@main.command()
@click.option(
    "--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="JSON file of the results."
)
@click.option(
    "--document",
    type=click.Path(path_type=Path),
    default=HERE / "README.md",
    show_default=True,
    help="Markdown file whose tables are filled in.",
)
def tables(results: Path, document: Path) -> None:
    """Put the tables of results.json between the markers of the document."""
    document.write_text(fill(document.read_text(encoding="utf-8"), read(results)), encoding="utf-8")


def has_turns(cut: Cut) -> bool:
    """Whether the cascade's turns are scored on it."""
    return bool({"scd", "endp"} & set(labelled_tasks(cut)))


def listened(cuts: List[Cut], whisper: Mapping[str, Any], turns: Mapping[str, Any]) -> Dict[str, Any]:
    """For `tune`: Whisper's words and the candidates of each cut that has both."""
    found = {}
    for cut in cuts:
        if cut.id in turns:
            language = whisper[cut.id]["language"]["seven"]
            found[cut.id] = (spoken_words(whisper[cut.id]["segments"][language], language), turns[cut.id])
    return found


def spent(whisper: Mapping[str, Any], turns: Mapping[str, Any]) -> Dict[str, float]:
    """CPU seconds of all passes over the test set, by stage."""
    total: Dict[str, float] = {}
    for record in [*whisper.values(), *turns.values()]:
        for stage, both in record["seconds"].items():
            name = stage.split()[0]
            total[name] = round(total.get(name, 0.0) + both["cpu"], 3)
    return total


def read(path: Path) -> Dict[str, Any]:
    """What has been measured so far."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def update(path: Path, key: str, kept: Mapping[str, Any]) -> None:
    """Replace one part of results.json, with where it comes from."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    command = " ".join(["baselines.py", *sys.argv[1:]])
    origin = {"command": command, "commit": git_commit(), "versions": {**versions(), **packages}}
    write_json(path, {**read(path), key: {**origin, **kept}})
    click.echo(f"{key}: {path}")


if __name__ == "__main__":
    main()
