"""`tokenverse-pp tokenizer`: a run's vocabulary; `average`: its last checkpoints; `export`: a model without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Optional, Tuple

import click

from tokenverse_pp.base.config import IN_CHUNKS, ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import replacing, replacing_folder
from tokenverse_pp.base.options import ExportOptions, tasks_named
from tokenverse_pp.cli.options import PATH, TOKEN_BIAS, config_options, options_from, plugin_options, read_config


@click.command("tokenizer", context_settings={"ignore_unknown_options": True})
@config_options
@click.option("--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Model file to write.")
def tokenizer(config_files: Tuple[Path, ...], overrides: Tuple[str, ...], output: Path) -> None:
    """Train the SentencePiece tokenizer of a run on data.train, before the run and without its GPUs.

    \b
      tokenizer --config my.yaml --tokenizer.sentences 1000000 --output data/tokenizer.model
      python recipes/train.py --config my.yaml --tokenizer.model data/tokenizer.model

    The tokenizer is the same as that of a training. With tokenizer.sentences, texts are drawn by data.weights like
    cuts, so that a corpus has the same share in the vocabulary as in training. Without it, every text counts once.
    """
    from tokenverse_pp.data.access import allow_sources
    from tokenverse_pp.models.bundle import get_tokenizer
    from tokenverse_pp.tasks import build_tasks, load_plugins

    config = read_config(config_files, overrides)
    if config.tokenizer.model:
        raise UserError(f"--tokenizer.model={config.tokenizer.model}: there is a tokenizer already; expected null")
    load_plugins(config.tasks.plugins)
    tasks = build_tasks(config.tasks.names, config.tasks.options())
    with allow_sources(config.data.allow_commands, config.data.allow_urls):
        found = get_tokenizer(config, tasks)
    with replacing(output) as temporary:
        found.save(temporary)
    click.echo(f"{found.vocab_size} tokens: {output}")


@click.command("average")
@click.argument("exp_dir", type=PATH)
@click.argument("output", type=PATH)
@click.option("--last", type=click.IntRange(min=1), default=1, show_default=True, help="Number of checkpoints.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type of the stored weights. float16 halves the size of the folder; loading converts it to float32.",
)
@click.option(
    "--running",
    is_flag=True,
    help="Mean over all steps between the first and the last of these checkpoints. Needs a run with "
    "training.average_period, and --last 2 or more.",
)
def average(exp_dir: Path, output: Path, last: int, dtype: str, running: bool) -> None:
    """Write the mean of the last checkpoints in EXP_DIR to the folder OUTPUT, which is new, empty or a model."""
    import torch

    from tokenverse_pp.api.folders import check_target
    from tokenverse_pp.models import checkpoint
    from tokenverse_pp.training.checkpoints import average as mean_of
    from tokenverse_pp.training.checkpoints import average_between

    check_target(output)
    found = checkpoint.list_checkpoints(exp_dir)
    if len(found) < last:
        raise UserError(f"{exp_dir}: expected at least the {last} checkpoints of --last, found {len(found)}")
    chosen = found[-last:]
    if running and last < 2:
        raise UserError("--running: needs --last 2 or more, to have a first and a last checkpoint")
    mean = average_between(chosen[0], chosen[-1]) if running else mean_of(chosen)
    kind = getattr(torch, dtype)
    weights = {k: v.to(kind) if v.is_floating_point() else v for k, v in mean.items()}
    texts = {name: (chosen[-1] / name).read_bytes() for name in (checkpoint.CONFIG, checkpoint.TOKENIZER)}
    with replacing_folder(output) as new:
        checkpoint.write_folder(new, {checkpoint.WEIGHTS: weights}, texts)
    size = (output / checkpoint.WEIGHTS).stat().st_size / 1e6
    click.echo(f"average of {chosen[0].name} .. {chosen[-1].name}, {size:.1f} MB: {output}")


@click.command("export")
@click.argument("model")
@click.option(
    "--format", "kind", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="Format of the export."
)
@click.option("--output-dir", required=True, type=PATH, help="Folder for the exported model.")
@click.option("--encoder", default="", help="Folder of the pretrained encoder. [default: as in training]")
@options_from(ExportOptions, "precision", precision={"default": None})
@click.option("--int8", is_flag=True, help="Short for --precision int8.")
@click.option("--float16", is_flag=True, help="Short for --precision float16.")
@click.option("--streaming", is_flag=True, help="Export for streams, in the chunks of the options below.")
@options_from(
    ChunkOptions,
    *IN_CHUNKS,
    chunk_ms={"default": None, "help": f"Length of a chunk in milliseconds. [default: {ChunkOptions.chunk_ms}]"},
    left_chunks={"default": None},
    sinks={"default": None},
)
@click.option(
    "--for",
    "target",
    type=click.Choice(["runtime", "sherpa-onnx"]),
    default="runtime",
    show_default=True,
    help="What runs the model: tokenverse_pp.runtime, or sherpa-onnx (C++, phones, the browser).",
)
@options_from(
    ExportOptions,
    "form",
    "task_sets",
    "token_bias",
    form={
        "help": "For sherpa-onnx. ctc: whole utterances, by the model's CTC head; online: streams of a Whisper "
        "encoder, by the transducer, in the chunks of the options above; prompt: as online, and each stream chooses "
        "its tasks. [default: ctc]"
    },
    task_sets={"option": "--tasks", "type": str, "multiple": True},
    token_bias=TOKEN_BIAS,
)
@plugin_options
def export(
    model: str, kind: str, output_dir: Path, encoder: str, trust_plugins: bool, target: str, **given: Any
) -> None:
    """Export MODEL (folder, checkpoint, experiment, name or hub id) for tokenverse_pp.runtime or for sherpa-onnx.

    The folder is written only if its graphs agree with torch on random audio.
    """
    from tokenverse_pp.api.model import load_named
    from tokenverse_pp.onnx.export import export_onnx

    flags = [name for name in ("int8", "float16") if given[name]]
    if len({*flags, given["precision"]} - {None}) > 1:
        raise UserError(f"--{', --'.join(flags)}: expected one of them at most, and no other --precision")
    precision: Any = flags[0] if flags else given["precision"] or ExportOptions.precision
    form = _sherpa_form(target, given["form"], given["streaming"])
    options = ExportOptions(
        precision,
        _chunks(given, given["streaming"] or form in ("online", "prompt")),
        form,
        tuple(tasks_named(text, "--tasks") or () for text in given["task_sets"]),
        token_bias=given["token_bias"],
    )
    description = export_onnx(load_named(model, encoder, trust_plugins)[0], output_dir, options)
    size = sum(entry["bytes"] for entry in description.files.values()) / 1e6
    for part in ("encoder", "logits"):
        errors = description.check.get(part)
        if errors is None:
            continue
        click.echo(f"{part}: differs from torch by {errors['rms']:.2g} (root mean square), {errors['max']:.2g} at most")
    click.echo(f"{kind}, {description.precision}, {size:.1f} MB: {output_dir}")


def _chunks(given: Mapping[str, Any], streams: bool) -> Optional[ChunkOptions]:
    """The chunks of an export for streams (raises UserError for their options with another export)."""
    told = {name: given[name] for name in IN_CHUNKS if given[name] is not None}
    if told and not streams:
        option = next(iter(told)).replace("_", "-")
        raise UserError(f"--{option}: only with --streaming, or with --for sherpa-onnx --form online or prompt")
    return ChunkOptions(**told) if streams else None


def _sherpa_form(target: str, form: Any, streaming: bool) -> Any:
    """The form of an export for sherpa-onnx, None for the runtime (raises UserError for options of the other one)."""
    if target == "runtime":
        if form is not None:
            raise UserError(f"--form {form}: only with --for sherpa-onnx")
        return None
    if streaming:
        raise UserError("--streaming: not with --for sherpa-onnx, which has --form online and prompt instead")
    return form or "ctc"
