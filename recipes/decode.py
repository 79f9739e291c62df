#!/usr/bin/env python3
"""Decode a CutSet with a trained model, and score it where it is labelled.

python recipes/decode.py --model exp/toy --cuts data/toy/cuts_test.jsonl.gz --output-dir exp/toy/decode
python recipes/decode.py --model exp/toy --cuts ... --tasks asr,lid      # no other task's token is written
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import click
import torch
from lhotse.cut import Cut
from tqdm import tqdm

from tokenverse_pp.cli.errors import report_errors
from tokenverse_pp.dataset import check_recording
from tokenverse_pp.decoding import choose_tasks, decode
from tokenverse_pp.files import write_json, write_text
from tokenverse_pp.manifests.labels import validate_cuts
from tokenverse_pp.scoring import score_hypotheses, score_table
from tokenverse_pp.search import SearchOptions
from tokenverse_pp.tasks import TaskSet, transcript_of
from tokenverse_pp.training.data import load_cuts
from tokenverse_pp.training.setup import load_model


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Model folder, checkpoint or experiment.")
@click.option("--cuts", "cut_files", required=True, multiple=True, help="CutSet to decode; may be given several times.")
@click.option("--output-dir", required=True, type=click.Path(path_type=Path), help="For hyps.jsonl and scores.json.")
@click.option("--tasks", default="", help="Tasks to decode, e.g. asr,scd. [default: all that the model knows]")
@click.option("--method", type=click.Choice(["greedy", "beam"]), default="beam", show_default=True)
@click.option("--beam", type=int, default=4, show_default=True, help="Hypotheses kept (modified beam search).")
@click.option("--blank-penalty", type=float, default=0.0, show_default=True, help="Subtracted from the blank's logit.")
@click.option("--languages", default="", help="Languages that may be written, e.g. fr,nl. [default: all]")
@click.option(
    "--force-language/--no-force-language",
    default=True,
    show_default=True,
    help="With the task lid: write nothing before a language token.",
)
@click.option("--encoder", default="", help="Where the pretrained encoder is, if not where it was in training.")
@click.option("--stored-features", is_flag=True, help="Take stored features in place of audio.")
@click.option("--max-duration", type=float, default=120.0, show_default=True, help="Seconds of audio in a batch.")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--first", type=int, help="Decode the first N cuts only.")
@click.option("--show", type=int, default=0, help="Print N hypotheses beside their references, those with most turns.")
@click.option("--threads", type=int, default=0, help="CPU threads of torch; 0 = torch's choice.")
def main(
    model: Path,
    cut_files: Sequence[str],
    output_dir: Path,
    tasks: str,
    method: str,
    beam: int,
    blank_penalty: float,
    languages: str,
    force_language: bool,
    encoder: str,
    stored_features: bool,
    max_duration: float,
    precision: str,
    first: Optional[int],
    show: int,
    threads: int,
) -> None:
    """See the module's docstring."""
    options = SearchOptions(
        method, beam, blank_penalty=blank_penalty, languages=split(languages) or None, force_language=force_language
    )
    if threads:
        torch.set_num_threads(threads)
    loaded = load_model(model, encoder)
    active = choose_tasks(loaded.tasks, split(tasks))
    cuts = list(load_cuts(list(cut_files), "cuts"))[:first]
    check_cuts(cuts, stored_features)
    if torch.cuda.is_available():
        loaded.model.cuda()
    hyps: Dict[str, Dict[str, Any]] = {}
    started = time.monotonic()
    with tqdm(total=len(cuts), unit="cut", disable=None) as bar:
        for records in decode(loaded, cuts, active, options, max_duration, stored_features, precision):
            hyps.update((record["id"], record) for record in records)
            bar.update(len(records))
    seconds = time.monotonic() - started
    ordered = [hyps[cut.id] for cut in cuts]
    scores = score_hypotheses(cuts, ordered)
    speech = sum(cut.duration for cut in cuts)
    scores["speed"] = {"audio_seconds": speech, "wall_seconds": seconds, "rtf": seconds / max(speech, 1e-9)}
    write(output_dir, ordered, scores)
    click.echo(score_table(scores))
    click.echo(f"{speech:.0f} s of audio in {seconds:.1f} s (real-time factor {seconds / max(speech, 1e-9):.4f})")
    # Conversations say more than single turns.
    show_examples(sorted(cuts, key=lambda cut: -len(cut.supervisions))[:show], hyps, loaded.tasks)
    click.echo(f"hypotheses: {output_dir / 'hyps.jsonl'}\nscores: {output_dir / 'scores.json'}")


def check_cuts(cuts: Sequence[Cut], stored_features: bool) -> None:
    """See that labels and audio are as they should be: before an hour of decoding, not after."""
    validate_cuts([cut for cut in cuts if "tasks" in (cut.custom or {})])
    if not stored_features:
        for cut in cuts:
            check_recording(cut)


def split(names: str) -> tuple[str, ...]:
    """``asr,lid`` -> (asr, lid)."""
    return tuple(name.strip() for name in names.split(",") if name.strip())


def write(output_dir: Path, hyps: List[Dict[str, Any]], scores: Dict[str, Any]) -> None:
    """Write both files, each whole or not at all."""
    lines = "".join(json.dumps(hyp, ensure_ascii=False) + "\n" for hyp in hyps)
    write_text(output_dir / "hyps.jsonl", lines)
    write_json(output_dir / "scores.json", scores)


def show_examples(cuts: Sequence[Cut], hyps: Dict[str, Dict[str, Any]], tasks: TaskSet) -> None:
    """Print references beside hypotheses."""
    for cut in cuts:
        labelled = ", ".join((cut.custom or {}).get("tasks", ()))
        click.echo(f"\n{cut.id} ({cut.duration:.1f} s; labelled for {labelled})")
        click.echo(f"  reference:  {tasks.render(transcript_of(cut, tasks))}\n  hypothesis: {hyps[cut.id]['text']}")


if __name__ == "__main__":
    with report_errors():
        main(standalone_mode=True)
