"""The cuts of a board and what a model wrote for them; what a command prints and writes about them."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import click
from lhotse.cut import Cut
from word_errors import Utterance, language_of

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_json
from tokenverse_pp.data.editing.conversations import ORIGINAL_TEXT
from tokenverse_pp.data.editing.stats import SECONDS_PER_HOUR
from tokenverse_pp.data.hypotheses import Hypothesis, read_hypotheses
from tokenverse_pp.data.labels import LABEL_SOURCE, labelled_tasks, validate_cuts
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.evaluation.scoring import score_hypotheses, scored_example, tasks_of_hypotheses
from tokenverse_pp.tasks.base import ScoredExample, TaskSet

RECIPES = str(Path(__file__).resolve().parents[1])
PACKAGES = ("tokenverse-pp", "meeteval", "whisper-normalizer", "kaldialign")


class Decoded:
    """The cuts of a board with their hypotheses.

    Args:
        cut_files: manifests.
        hyp_file: hypotheses, one for each cut.
        model: the name of the model, where the cuts were decoded here.

    Attributes:
        pairs: examples as the tasks score them, with their cuts, in the order of the cuts.
    """

    def __init__(self, cut_files: Sequence[str], hyp_file: Path, model: Optional[str]):
        for path in cut_files:
            validate_cuts(path)
        self.cut_files, self.hyp_file, self.model = list(cut_files), hyp_file, model
        self.cuts: List[Cut] = [cut for path in cut_files for cut in read_cuts(path)]
        records = read_hypotheses(hyp_file)
        self.scores = score_hypotheses(self.cuts, records)  # sees that cuts and hypotheses belong together
        self.hyps: Dict[str, Hypothesis] = {record["id"]: record for record in records}
        self.tasks: TaskSet = tasks_of_hypotheses([(cut, self.hyps[cut.id]) for cut in self.cuts])
        self.pairs: List[Tuple[ScoredExample, Cut]] = [
            (scored_example(cut, self.hyps[cut.id], self.tasks), cut) for cut in self.cuts
        ]

    def utterances(self) -> List[Utterance]:
        """Words of reference and hypothesis of each cut."""
        return [Utterance.of(example, cut, language_of(cut)) for example, cut in self.pairs]

    def about(self) -> Dict[str, Any]:
        """What was scored: counts, where the labels are from, versions."""
        turns = [turn for cut in self.cuts for turn in cut.supervisions]
        kept = sum(ORIGINAL_TEXT in (turn.custom or {}) for turn in turns)
        sources: Dict[str, Dict[str, int]] = {}
        for cut in self.cuts:
            made = (cut.custom or {}).get(LABEL_SOURCE) or {}
            for task in labelled_tasks(cut):
                counts = sources.setdefault(task, {})
                counts[made.get(task, "people")] = counts.get(made.get(task, "people"), 0) + 1
        return {
            "cuts": len(self.cuts),
            "hours": sum(cut.duration for cut in self.cuts) / SECONDS_PER_HOUR,
            "words": sum(len(example.ref.words) for example, _ in self.pairs),
            "turns": len(turns),
            "turns_with_original_text": kept,
            "label_sources": sources,
            "cut_files": self.cut_files,
            "hyps": str(self.hyp_file),
            "model": self.model,
            "versions": versions(),
        }


def versions() -> Dict[str, str]:
    """Of the packages that counted."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def decoded(given: Mapping[str, Any]) -> Decoded:
    """Decode where a model is given; read the hypotheses.

    Raises:
        UserError: for both or neither of model and hypotheses, and where cuts could not be decoded.
    """
    model, hyps, folder, further = (given[name] for name in ("model", "hyps", "output_dir", "further"))
    if bool(model) == bool(hyps):
        raise UserError("expected --model (decode, then score) or --hyps (score what was decoded)")
    if hyps and further:
        raise UserError(f"--hyps: nothing is decoded, so {further[0]} has no effect")
    if model:
        sys.path.insert(0, RECIPES)
        try:
            from decode import main as decode
        finally:
            sys.path.remove(RECIPES)
        cuts = [word for path in given["cut_files"] for word in ("--cuts", path)]
        command = ["--model", model, *cuts, "--output-dir", str(folder), *further]
        try:
            decode.main(command, prog_name="decode.py", standalone_mode=False)
        except click.ClickException as error:
            raise UserError(error.format_message()) from error
        except SystemExit as error:
            raise UserError(
                f"every cut of a board counts; {folder / 'failures.jsonl'} lists those not decoded"
            ) from error
        click.echo()
    return Decoded(given["cut_files"], hyps or folder / "hyps.jsonl", model)


def heading(board: str, about: Mapping[str, Any]) -> str:
    """What was scored, for people."""
    sources = [
        f"{task} by {source} ({count} cuts)"
        for task, found in about["label_sources"].items()
        for source, count in found.items()
    ]
    return (
        f"{board}: {about['cuts']} cuts, {about['hours']:.2f} h, {about['turns']} turns, {about['words']} words\n"
        f"reference texts: {about['turns_with_original_text']} turns as the corpus writes them, "
        f"{about['turns'] - about['turns_with_original_text']} as plain words\n"
        f"labels: {', '.join(sources)}"
    )


def finish(given: Mapping[str, Any], board: str, result: Mapping[str, Any], parts: Sequence[str]) -> None:
    """Print the tables and write the JSON."""
    click.echo("\n\n".join(part for part in parts if part))
    target = given["output_dir"] / f"{board}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, {"board": board, **result})
    click.echo(f"\nscores: {target}")
