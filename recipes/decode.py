#!/usr/bin/env python3
"""Decode a CutSet with a trained model, score the tasks that it is labelled for, and write an HTML report.

\b
python recipes/decode.py --model exp/toy --cuts data/toy/cuts_test.jsonl.gz --output-dir exp/toy/decode
python recipes/decode.py --model exp/toy --cuts ... --tasks asr,lid      # no other task's token is written
torchrun --nproc-per-node 8 recipes/decode.py --model exp/toy ...        # eight processes, the same result
python recipes/decode.py --model exp/toy ... --engine ray                # by a Ray cluster, the same result

Run the same command again to resume a stopped run.
Exit code 2: a wrong option, or cuts that could not be decoded (listed in failures.jsonl; all others are written).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

import click
from lhotse.cut import Cut

from tokenverse_pp.api.model import RecognizerJob, load_named
from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.engine import Parts, current_engine
from tokenverse_pp.base.errors import UserError, printable
from tokenverse_pp.base.files import url_of, write_json, write_text
from tokenverse_pp.base.options import DecodeOptions, PageOptions, SearchOptions, names_of, tasks_named
from tokenverse_pp.base.storage import working_folder
from tokenverse_pp.cli.groups import EXIT_CODE, report_errors
from tokenverse_pp.cli.options import (
    TOKEN_BIAS,
    NamedNumber,
    chosen,
    engine_options,
    model_option,
    options_from,
    plugin_options,
    source_options,
    threads_option,
)
from tokenverse_pp.data.access import check_access
from tokenverse_pp.data.distributed import DistributedContext, set_threads, start_distributed, stop_distributed
from tokenverse_pp.data.editing.stats import corpus_names
from tokenverse_pp.data.labels import validate_cuts
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.data.samplers import load_cuts
from tokenverse_pp.decoding.context_graph import read_hotwords
from tokenverse_pp.decoding.inactive import inactive_of
from tokenverse_pp.decoding.run import Outcome, batch_line, check_ids, decode_all, run_digest
from tokenverse_pp.evaluation.report import write_report
from tokenverse_pp.evaluation.scoring import score_hypotheses, score_table
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.stored_features import check_origin
from tokenverse_pp.tasks import TaskSet, transcript_of
from tokenverse_pp.training.failures import join_watch, looking_after

REPORT = "report.html"
PATIENCE = 300.0  # seconds without a sign of life after which another process counts as dead


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@model_option
@click.option("--cuts", "cut_files", required=True, multiple=True, help="CutSet to decode; may be given several times.")
@click.option("--output-dir", required=True, type=click.Path(path_type=Path), help="For hyps.jsonl, scores.json etc.")
@options_from(DecodeOptions, "tasks", "inactive", "pauses", tasks={"type": str})
@options_from(
    SearchOptions,
    *("method", "beam", "max_symbols", "nbest", "blank_penalty", "token_bias", "temperature", "length_bonus"),
    *("hotwords", "hotword_score", "lm", "lm_scale", "lm_bonus", "joiner_dtype", "languages", "force_language"),
    token_bias=TOKEN_BIAS,
    hotwords={"type": click.Path(dir_okay=False), "help": "File of phrases to prefer: 'phrase [TAB bonus]'."},
    lm={"type": click.Path()},
    languages={"type": str, "default": "", "help": "Languages that may be written, e.g. fr,nl. [default: all]"},
    force_language={"default": True},
)
@click.option("--encoder", default="", help="Where the pretrained encoder is, if not where it was in training.")
@options_from(
    DecodeOptions,
    *("stored_features", "max_duration", "window", "overlap", "precision", "vector_scale"),
    vector_scale={"type": NamedNumber("TASK=NUMBER", "ner=1.5"), "multiple": True},
)
@options_from(
    ChunkOptions,
    *("chunk_ms", "left_chunks", "sinks"),
    chunk_ms={"default": 0, "help": "Decode in chunks of this many milliseconds, as in streaming; 0: full context."},
)
@click.option("--first", type=int, help="Decode the first N cuts only.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Resume a stopped run.")
@click.option("--report/--no-report", default=True, show_default=True, help="Write report.html into the output folder.")
@click.option("--embed-audio", is_flag=True, help="Put the audio of the utterances in report.html into the page.")
@click.option("--show", type=int, default=0, help="Print N hypotheses beside their references, those with most turns.")
@threads_option
@plugin_options
@source_options
@engine_options
def main(**given: Any) -> None:
    """See the module's docstring."""
    options = options_of(given)
    world = start_distributed()
    if current_engine().is_cluster and world.size > 1:
        raise UserError("--engine ray: has its own workers; expected one process, without torchrun")
    watch = join_watch(world, PATIENCE)
    with looking_after(watch):
        whole = run(given, options, world)
    stop_distributed()
    if not whole:
        sys.exit(EXIT_CODE)


def options_of(given: Mapping[str, Any]) -> DecodeOptions:
    """The options of the command line that affect the result."""
    search = chosen(
        SearchOptions,
        given,
        hotwords=read_hotwords(given["hotwords"]) if given["hotwords"] else None,
        languages=names_of(given["languages"]) or None,
    )
    return chosen(
        DecodeOptions,
        given,
        search=search,
        tasks=tasks_named(given["tasks"], "--tasks") or (),
        chunks=chosen(ChunkOptions, given) if given["chunk_ms"] else None,
    )


def run(given: Mapping[str, Any], options: DecodeOptions, world: DistributedContext) -> bool:
    """Decode, score, write and print; return whether all cuts were decoded (True in all processes but the first)."""
    if given["first"] is not None and given["first"] < 0:
        raise UserError(f"--first: expected 0 or more, got {given['first']}")
    loaded, _ = load_named(given["model"], given["encoder"], given["trust_plugins"])
    threads = set_threads(given["threads"], loaded.model)
    if world.is_first:
        click.echo(threads)
    loaded.tasks.chosen(options.tasks, "--tasks: ")
    check_chunks(loaded, options)
    corpora: Dict[str, str] = {}
    cuts = read_all(given["cut_files"], corpora)[: given["first"]]
    check_cuts(cuts, loaded, options)
    if given["report"] and given["embed_audio"] and options.stored_features:
        for cut in cuts:
            check_access(cut)
    start = None
    if current_engine().is_cluster:
        start = job_of(given, options, run_digest(loaded, options))
    else:
        loaded.model.to(world.device)
    folder: Path = given["output_dir"]
    parts = Parts(working_folder(folder, "decoding") / "parts")
    outcome = decode_all(loaded, cuts, options, parts.folder, world, given["resume"], click.echo, start)
    if outcome is None:
        world.barrier()  # the first process has written the results
        if world.leads:
            parts.remove()
        return True
    hyps = {record["id"]: record for record in outcome.records}
    decoded = [cut for cut in cuts if cut.id in hyps]
    scores = score_hypotheses(decoded, outcome.records, loaded.tasks, corpora)
    scores.update(
        refused=len(outcome.failures),
        speed=outcome.speed,
        options=readable({**given, "inactive": inactive_of(loaded, options.inactive)}),
    )
    write(folder, outcome, scores)
    if given["report"]:
        page = PageOptions(f"Decoding report: {given['model']}", embed_audio=given["embed_audio"])
        write_report(folder / REPORT, cuts, outcome.records, scores, outcome.failures, loaded.tasks, corpora, page)
    parts.remove()
    world.barrier()
    click.echo(score_table(scores))
    print_speed(outcome.speed, options.stored_features)
    # Conversations say more than single turns.
    show_examples(sorted(decoded, key=lambda cut: -len(cut.supervisions))[: given["show"]], hyps, loaded.tasks)
    shown = url_of(folder) or folder
    click.echo(f"hypotheses: {shown}/hyps.jsonl\nscores: {shown}/scores.json")
    if given["report"]:
        click.echo(f"report: {shown}/{REPORT}")
    if outcome.failures:
        refused = f"{len(outcome.failures)} of {len(cuts)} cuts could not be decoded"
        click.echo(f"{refused}: {shown}/failures.jsonl", err=True)
    return not outcome.failures


def job_of(given: Mapping[str, Any], options: DecodeOptions, digest: str) -> RecognizerJob:
    """The job for the workers of a cluster: what they load and compute."""
    plugins = click.get_current_context().params["plugins"]
    return RecognizerJob(batch_line, given["model"], given["encoder"], options, digest, plugins, given["trust_plugins"])


def read_all(paths: Sequence[str], corpora: Dict[str, str]) -> List[Cut]:
    """Return the cuts of all files, in order; with several files, ``corpora`` gets the file that each cut is from."""
    cuts: List[Cut] = []
    for path, name in zip(paths, corpus_names(paths)):
        load_cuts([path], "cuts")  # its error names the option if the file is missing or has no cuts
        found = list(read_cuts(path))
        cuts.extend(found)
        if len(paths) > 1:
            corpora.update((cut.id, name) for cut in found)
    return cuts


def check_chunks(loaded: ModelBundle, options: DecodeOptions) -> None:
    """Check that the encoder can run in these chunks; warn if it was not trained for that."""
    if options.chunks is None:
        return
    loaded.model.encoder.grid(options.chunks)
    if not any(loaded.config.model.streaming.chunk_ms):
        click.echo("warning: --chunk-ms: this model was trained in full context only (model.streaming)", err=True)


def check_cuts(cuts: Sequence[Cut], loaded: ModelBundle, options: DecodeOptions) -> None:
    """Check ids, labels and the kind of features before decoding starts."""
    check_ids(cuts)
    validate_cuts(cuts, unlabelled=True)
    if options.stored_features and cuts:
        check_origin(cuts[0], loaded.config.model.encoder)


def readable(given: Mapping[str, Any]) -> Dict[str, Any]:
    """Convert the options to values that JSON can hold."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def write(folder: Path, outcome: Outcome, scores: Mapping[str, Any]) -> None:
    """Write the result files, each atomically."""
    for name, records in (("hyps.jsonl", outcome.records), ("failures.jsonl", outcome.failures)):
        write_text(folder / name, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    write_json(folder / "scores.json", scores)


def print_speed(speed: Mapping[str, Any], stored_features: bool) -> None:
    """Print the wall-clock real-time factor, also of each process; with stored features without the encoder."""
    lines = [("", speed)]
    if len(speed["ranks"]) > 1:
        lines += [(f"  process {rank}: ", part) for rank, part in enumerate(speed["ranks"])]
    for name, part in lines:
        took = f"{part['audio_seconds']:.0f} s of audio in {part['wall_seconds']:.1f} s"
        without = ", without the encoder of the stored features" if stored_features else ""
        click.echo(f"{name}{took} (real-time factor {part['rtf']:.4f}{without})")


def show_examples(cuts: Sequence[Cut], hyps: Mapping[str, Any], tasks: TaskSet) -> None:
    """Print references beside hypotheses."""
    for cut in cuts:
        labelled = ", ".join((cut.custom or {}).get("tasks", ()))
        head = f"\n{cut.id} ({cut.duration:.1f} s; labelled for {labelled})"
        ref, hyp = tasks.render(transcript_of(cut, tasks)), hyps[cut.id]["text"]
        click.echo(printable(f"{head}\n  reference:  {ref}\n  hypothesis: {hyp}"))


if __name__ == "__main__":
    with report_errors():
        main(standalone_mode=True)
