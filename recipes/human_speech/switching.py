#!/usr/bin/env python3
"""Does a model stop writing a task's tokens when the task is switched off?

\b
python recipes/human_speech/switching.py --model exp/pp --cuts data/human_speech/features/cuts_test.jsonl.gz \\
  --stored-features --output-dir exp/pp/switching

Decodes greedily, with the vectors of all tasks and with that of asr alone. Nothing is suppressed: the search may emit
the tokens of any task both times, so only the vectors tell the model which tasks are on. For each task, the table has
the share of the cuts labelled for it in which its tokens were emitted with all tasks on and with asr alone, and the WER
of both. Cuts without a list of tasks have no labels and are not counted, also not for the WER.

With --masked, features are masked as in training. A model that switches its tasks with masks, but not without, reads
the tasks from the masks (model.vectors.masked, model.spec_augment.fill).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import click
import kaldialign
import torch
from lhotse.cut import Cut

from tokenverse_pp.api.model import load_named
from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import aligned, write_json
from tokenverse_pp.base.options import DecodeOptions, SearchOptions
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.cli.options import chosen, model_option, options_from, threads_option
from tokenverse_pp.data.dataset import load_inputs
from tokenverse_pp.data.distributed import set_threads
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.decoding.recognizer import Recognizer, plan_batches, vector_weights
from tokenverse_pp.evaluation.scoring import labelled_if_any
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.tasks import transcript_of

RESULT = "switching.json"
Counts = Dict[str, Dict[str, Tuple[float, float]]]  # metric -> cut id -> (numerator, denominator)


def words_and_tokens(
    loaded: ModelBundle, cuts: Sequence[Cut], active: Sequence[str], options: DecodeOptions
) -> Dict[str, List[str]]:
    """Words and task tokens by cut id, decoded with the vectors of the active tasks; no token is suppressed.

    Raises:
        UserError: if the encoder outputs NaN or infinity for a cut.
    """
    recognizer = Recognizer(loaded, options, vector_weights(loaded, loaded.tasks.subset(active)))
    texts: Dict[str, List[str]] = {}
    for batch in plan_batches(cuts, options):
        inputs = [load_inputs(cut, options.stored_features, convert=not options.stored_features) for cut in batch]
        for cut, best in zip(batch, recognizer.recognize(inputs)):
            if best is None:
                raise UserError(f"cut {cut.id}: the encoder gave NaN or infinity")
            texts[cut.id] = loaded.tokenizer.decode(best[0].tokens).split()
    return texts


def count_switching(loaded: ModelBundle, cuts: Sequence[Cut], options: DecodeOptions) -> Counts:
    """What each cut adds to each score, in the form of `evaluation.comparison.Counted`.

    ``switched on scd``, ``switched off scd``: whether tokens of scd were emitted with all tasks and with ``asr`` alone,
    for cuts labelled for it. ``switched wer all``, ``switched wer alone``: word errors of both.

    Raises:
        UserError: for a model that has no task vectors, or no task but ``asr``.
    """
    tasks = loaded.tasks
    if loaded.config.model.vectors.placement == "none" or len(tasks.names) < 2:
        raise UserError(
            f"{loaded.folder}: expected a model with task vectors and more tasks than asr, to switch between"
        )
    counts: Counts = {}
    cuts = [cut for cut in cuts if labelled_if_any(cut)]
    for active, state, which in ((tasks.names, "on", "all"), (("asr",), "off", "alone")):
        texts = words_and_tokens(loaded, cuts, active, options)
        for cut in cuts:
            for name in labelled_tasks(cut):
                if name != "asr" and name in tasks:
                    written = any(word in tasks[name].symbols for word in texts[cut.id])
                    counts.setdefault(f"switched {state} {name}", {})[cut.id] = (float(written), 1.0)
            ref = list(transcript_of(cut, tasks).words)
            hyp = [word for word in texts[cut.id] if word not in tasks.symbols]
            errors = kaldialign.edit_distance(ref, hyp)["total"]
            counts.setdefault(f"switched wer {which}", {})[cut.id] = (float(errors), float(len(ref)))
    return counts


def table(counts: Counts) -> List[List[str]]:
    """A row per score: its name, its value in percent, the number of its cuts."""
    rows = [["score", "%", "cuts"]]
    for metric, ratios in counts.items():
        above, below = (sum(column) for column in zip(*ratios.values()))
        rows.append([metric, f"{100 * above / max(below, 1.0):.1f}", str(len(ratios))])
    return rows


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@model_option
@click.option("--cuts", required=True, help="CutSet that is decoded twice: with all tasks and with asr alone.")
@click.option(
    "--output-dir", required=True, type=click.Path(path_type=Path), help=f"Folder that {RESULT} is written to."
)
@click.option("--encoder", default="", help="Where the pretrained encoder is, if not where it was in training.")
@click.option("--masked", is_flag=True, help="Decode with the model's SpecAugment.")
@options_from(
    ChunkOptions,
    *("chunk_ms", "left_chunks", "sinks"),
    chunk_ms={"default": 0, "help": "Decode in chunks of this many milliseconds, as in streaming; 0: full context."},
)
@options_from(DecodeOptions, "stored_features", "max_duration", "precision")
@threads_option
def main(model: str, cuts: str, output_dir: Path, encoder: str, masked: bool, threads: int, **given: Any) -> None:
    """See the module's docstring."""
    search = SearchOptions("greedy", force_language=False)
    chunks = chosen(ChunkOptions, given) if given["chunk_ms"] else None
    options = chosen(DecodeOptions, given, search=search, chunks=chunks)
    loaded, _ = load_named(model, encoder)
    click.echo(set_threads(threads, loaded.model))
    if masked:
        torch.manual_seed(0)
        loaded.model.spec_augment.train()
    counts = count_switching(loaded, list(read_cuts(cuts)), options)
    write_json(output_dir / RESULT, {"counts": counts})
    click.echo(aligned(table(counts)))


if __name__ == "__main__":
    with report_errors():
        main(standalone_mode=True)
