#!/usr/bin/env python3
"""Fine-tune a model on your own recordings: import them, split them, train, and score before and after.

\b
python recipes/finetune.py --table clips.csv --output-dir exp/mine --set language=en
python recipes/finetune.py --table clips.tsv --column audio=path --column text=sentence --output-dir exp/mine \\
    --training.max_steps 500 --optim.lr 1e-4       # options of recipes/train.py come last

clips.csv has a row for each recording, with columns audio (a path beside the table) and text; language, speaker and
others may follow (docs/import.md: all sources and options of `tokenverse-pp manifest import` work here). The model is
OUTPUT_DIR/model. Run the same command again to resume a stopped run.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional

import click
import decode
import torch
import train
from lhotse.cut import Cut

from tokenverse_pp.api.folders import locate_model
from tokenverse_pp.api.model import read_config
from tokenverse_pp.base.config import Config
from tokenverse_pp.base.config_files import parse_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import compatible_languages
from tokenverse_pp.cli.evaluate import compare
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.cli.manifest_import import OPTIONS, options_of
from tokenverse_pp.data.editing.split import KeyRule, split_manifest
from tokenverse_pp.data.hypotheses import read_hypotheses
from tokenverse_pp.data.importing.run import audio_folder, import_manifest
from tokenverse_pp.data.importing.sources import ImportOptions
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.evaluation.comparison import Counted, compare_decodings, count_utterances
from tokenverse_pp.metrics.bootstrap import Comparison

log = logging.getLogger("tokenverse_pp.recipes.finetune")
SHARES = {"train": 0.7, "dev": 0.15, "test": 0.15}
PASSES, STEPS = 12, (60, 3000)  # passes through the training set, within these numbers of steps
VALIDATIONS = 12
OTHER_SPEECH = 1.2  # errors for a word of the transcripts; a model that does not know the language makes about 1
FEW = 30  # test recordings
EPOCH = 2000  # cuts drawn in an epoch, at least
# Seconds of audio in a batch: some minutes of speech give some steps a pass, and XLSR-53 takes about 8 GB of a GPU.
BATCH = {"cpu": 40, "cuda": 80}
AUGMENT = [
    *("--data.augment.speed", "[0.9, 1.0, 1.1]", "--data.augment.noise", "[generated]"),
    *("--data.augment.rooms", "[generated]", "--data.augment.telephone_prob", "0.1"),
]


@click.command(
    help=__doc__, context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "max_content_width": 100}
)
@click.option("--output-dir", required=True, type=click.Path(path_type=Path), help="For cuts, checkpoints and model.")
@click.option("--model", default="human-speech", show_default=True, help="Folder, name or hub id to start from.")
@click.option(
    "--by",
    default="text",
    show_default=True,
    help="What training, dev and test set do not share: text, speaker, recording or a custom field; with commas.",
)
@OPTIONS
@click.pass_context
def main(context: click.Context, output_dir: Path, model: str, by: str, **given: Any) -> None:
    """See the module's docstring."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("one process: for several GPUs import the data, and start recipes/train.py by torchrun")
    if context.get_parameter_source("normaliser") is click.core.ParameterSource.DEFAULT:
        given["normaliser"] = "words"  # as what the packaged model was trained on
    files = {name: output_dir / f"cuts_{name}.jsonl.gz" for name in SHARES}
    source = read_config(locate_model(model))
    options = [*training_options(output_dir, model), *AUGMENT, *context.args]
    parse_config(options, find_model=train.model_to_continue)  # a wrong one is seen before anything is written
    if all(path.exists() for path in files.values()):
        kept = ", ".join(path.name for path in files.values())
        log.warning("%s: %s are those of an earlier run, nothing is imported again", output_dir, kept)
    else:
        output_dir.mkdir(parents=True, exist_ok=True)
        import_and_split(output_dir / "cuts.jsonl.gz", files, options_of(given), KeyRule(tuple(by.split(","))))
    cuts = {name: list(read_cuts(path)) for name, path in files.items()}
    for name, found in cuts.items():
        click.echo(f"{name}: {len(found)} cuts, {sum(cut.duration for cut in found) / 60:.1f} minutes")
    # A model with task vectors learns for the tasks that are active: with others beside them it is nearly as it was.
    labelled = {name for part in cuts.values() for cut in part for name in labelled_tasks(cut)}
    tasks = ",".join(name for name in source.tasks.names if name in labelled)
    click.echo(f"\nscores before, on the test set, tasks {tasks}:")
    test, device = str(files["test"]), "cuda" if torch.cuda.is_available() else "cpu"
    decoding = ["--cuts", test, "--precision", precision_of(device), "--tasks", tasks]
    decode_into(output_dir / "before", ["--model", model, *decoding])
    before = count_utterances(cuts["test"], read_hypotheses(output_dir / "before" / "hyps.jsonl"))
    warn_of_other_speech(before)
    options = [*options[: -len(context.args) or None], *run_options(source, cuts, device), *context.args]
    click.echo(f"\ntraining, as by: python recipes/train.py {shlex.join(options)}\n")
    train.main(options)
    click.echo("\nscores after, on the test set:")
    decode_into(output_dir / "after", ["--model", str(output_dir), *decoding])
    click.echo("\nbefore (A) and after (B), on the test set:")
    hyps = [str(output_dir / name / "hyps.jsonl") for name in ("before", "after")]
    compare.main([*hyps, "--cuts", test], standalone_mode=False)
    after = count_utterances(cuts["test"], read_hypotheses(output_dir / "after" / "hyps.jsonl"))
    click.echo(f"\n{verdict(compare_decodings([before], [after]).get('wer'), model)}")
    click.echo(f"model: {output_dir}\n    tokenverse-pp transcribe FILE --model {output_dir} --tasks {tasks}")


def import_and_split(manifest: Path, files: Dict[str, Path], options: ImportOptions, rule: KeyRule) -> None:
    """Write the cuts of the sets; leave nothing of an import that cannot be split, which would block the next one."""
    audio = audio_folder(manifest, options)
    kept = audio.exists()  # not of this import, which then had nothing to write there
    import_manifest(manifest, options, say=click.echo)
    try:
        split_manifest(manifest, files, SHARES, rule, seed=0)
    except UserError:
        manifest.unlink()
        if not kept:
            shutil.rmtree(audio, ignore_errors=True)
        raise


def warn_of_other_speech(before: Counted) -> None:
    """Warn where the model makes far more errors than the transcripts have words.

    Most of them are then insertions: speech that nobody transcribed, which training would teach the model to leave out.
    """
    ratios = before.metrics.get("wer", {}).values()
    errors, words = (sum(column) for column in zip(*ratios)) if ratios else (0, 0)
    if words and errors > OTHER_SPEECH * words:
        log.warning(
            "the model makes %.1f errors for each word of the transcripts: do the recordings hold speech that is not "
            "transcribed? Training would teach the model to leave such speech out. Give the start and end of what is "
            "transcribed as columns start and end, or transcribe all of it",
            errors / words,
        )


def verdict(wer: Optional[Comparison], model: str) -> str:
    """Whether the new model is better, in a sentence."""
    if wer is None:
        return "no test recording has a transcript: whether the model became better is unknown"
    said = f"WER {wer.a:.1%} before, {wer.b:.1%} after, on {wer.utterances} recordings"
    low, high = wer.interval
    if low > 0:
        said = f"better: {said}"
    elif high < 0:
        said = f"WORSE: {said}. Keep {model}, or try a lower rate (--optim.lr 1e-4) and more recordings"
    else:
        said = f"undecided: {said}; the difference may be chance"
    if wer.utterances < FEW:
        said += f". {wer.utterances} are few: look at the results on other recordings too"
    return f"{said}. What it knew of other speech may have suffered."


def training_options(folder: Path, model: str) -> List[str]:
    """Options of recipes/train.py that depend on the command line alone."""
    return [
        *("--training.init_from", model, "--training.exp_dir", str(folder), "--training.patience", "4"),
        *("--training.valid_first", "true"),  # the start may be among the best
        *("--training.keep_best", "2", "--training.keep_last", "1", "--training.average_last", "1"),
        *("--data.train", f"[{folder / 'cuts_train.jsonl.gz'}]", "--data.valid", f"[{folder / 'cuts_dev.jsonl.gz'}]"),
    ]


def run_options(source: Config, cuts: Dict[str, List[Cut]], device: str) -> List[str]:
    """Options that depend on the model, the data and the machine."""
    seconds = sum(cut.duration for cut in cuts["train"])
    steps = int(min(STEPS[1], max(STEPS[0], PASSES * seconds / BATCH[device])))
    tasks = source.tasks
    found = sorted(
        {str(turn.language) for part in cuts.values() for cut in part for turn in cut.supervisions if turn.language}
    )
    new = [code for code in found if not any(compatible_languages(code, known) for known in tasks.languages)]
    languages = [*tasks.languages, *new] if "lid" in tasks.names else []
    values = {
        "tasks.languages": f"[{', '.join(languages)}]",
        "tasks.activation": tasks.activation,
        "tasks.activation_prob": tasks.activation_prob,
        "data.max_duration": BATCH[device],
        # With as many buckets as usual, each would hold too few cuts for a batch.
        # Loaders start anew in each epoch: with few cuts, one epoch is many passes.
        "data.weights": "[1.0]",
        "data.epoch_cuts": max(len(cuts["train"]), EPOCH),
        "data.num_workers": 0 if device == "cpu" else 4,  # a step of a CPU takes much longer than its audio
        "data.num_buckets": int(min(20, max(1, seconds / BATCH[device] / 10))),
        "training.max_steps": steps,
        "training.valid_every": steps // VALIDATIONS,
        "training.log_every": max(1, steps // VALIDATIONS // 2),
        "training.save_every": steps,
        "training.precision": precision_of(device),
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def precision_of(device: str) -> str:
    """bf16 where the processor multiplies it natively, else fp32 (on old GPUs fp16)."""
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    described = Path("/proc/cpuinfo")
    return "bf16" if described.exists() and "avx512_bf16" in described.read_text(errors="replace") else "fp32"


def decode_into(folder: Path, options: List[str]) -> None:
    """Decode and score, by recipes/decode.py."""
    decode.main([*options, "--output-dir", str(folder)], standalone_mode=False)


if __name__ == "__main__":
    with report_errors():
        main(standalone_mode=True)
