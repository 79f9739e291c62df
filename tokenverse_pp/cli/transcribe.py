"""`tokenverse-pp transcribe`: audio to transcripts."""

from __future__ import annotations

import os
import sys
from collections import deque
from pathlib import Path
from typing import Any, Deque, Iterator, Mapping, Optional, Tuple

import click
from tqdm import tqdm

from tokenverse_pp.base.engine import messages_to
from tokenverse_pp.base.errors import UserError, printable
from tokenverse_pp.base.files import url_of
from tokenverse_pp.base.options import SearchOptions, TranscribeOptions, names_of, tasks_named
from tokenverse_pp.cli.groups import EXIT_CODE, MessageHandler
from tokenverse_pp.cli.options import (
    PATH,
    TOKEN_BIAS,
    chosen,
    device_option,
    engine_options,
    known_model,
    model_options,
    options_from,
    plugin_options,
    source_options,
    threads_option,
)

# The names of formats are repeated here, so that `--help` need not import torch (a test compares them).
FORMATS = ("text", "raw", "json", "srt", "vtt", "rttm", "stm", "ctm", "html")


@click.command(context_settings={"max_content_width": 100})
@click.argument("audio", nargs=-1, metavar="AUDIO...")
@model_options
@options_from(
    TranscribeOptions,
    *("tasks", "inactive", "pauses", "language", "hotwords", "lm"),
    tasks={"type": str},
    language={"type": str},
    hotwords={"type": PATH, "help": "File of phrases to prefer: 'phrase [TAB bonus]'. Not with greedy search."},
    lm={"type": PATH},
)
@options_from(
    SearchOptions,
    *("lm_scale", "lm_bonus", "blank_penalty", "token_bias", "method", "beam"),
    token_bias=TOKEN_BIAS,
    method={"default": None},
    beam={"default": None},
)
@click.option("--format", "formats", type=click.Choice(FORMATS), multiple=True, help="May be repeated. [default: text]")
@click.option(
    "--times/--no-times",
    default=None,
    help="Start paragraphs of text and html with their times. [default: not for text of one paragraph]",
)
@click.option("--output-dir", type=PATH, help="Write a file for each input and format into it.")
@click.option("--recursive", is_flag=True, help="Also look for audio in subfolders.")
@click.option(
    "--channels",
    type=click.Choice(["mix", "each"]),
    default="mix",
    show_default=True,
    help="Average the channels, or transcribe each as a recording of its own (NAME-1, NAME-2, ..).",
)
@click.option("--raw", is_flag=True, help="Standard input has raw samples: 16 bits, little-endian, one channel.")
@click.option("--raw-rate", type=int, default=16000, show_default=True, help="Sampling rate of --raw in Hz.")
@device_option
@options_from(TranscribeOptions, "precision", "batch_seconds")
@threads_option
@click.option("--list-tasks", is_flag=True, help="Print the model's tasks and languages, and stop.")
@plugin_options
@source_options
@engine_options
def transcribe(audio: Tuple[str, ...], **given: Any) -> None:
    """Transcribe audio files, folders of them, lhotse manifests of cuts, or standard input (-).

    \b
    tokenverse-pp transcribe call.wav
    tokenverse-pp transcribe calls/ --recursive --output-dir out --format srt --format json
    ffmpeg -i talk.mkv -f wav - | tokenverse-pp transcribe - --tasks asr,endp

    On a terminal: turns with their times, entities in brackets, endpoints as ◆, unsure words underlined (in colour
    unless NO_COLOR is set). In a pipe: plain text, after the file's name if there are several; json: a line per file.

    Exit code 2: an option is wrong, or some input was refused (one line each on stderr; all others are transcribed).
    """
    if given["list_tasks"]:
        list_tasks(given["model"], given["trust_plugins"])
        return
    check(audio, given)
    tasks, language = tasks_named(given["tasks"], "--tasks"), names_of(given["language"]) or None
    search = SearchOptions(**{name: given[name] for name in ("lm_scale", "lm_bonus", "blank_penalty", "token_bias")})
    with messages_to(MessageHandler()):
        done = run(audio, given, chosen(TranscribeOptions, given, tasks=tasks, language=language, search=search))
    if not done:
        sys.exit(EXIT_CODE)


def check(audio: Tuple[str, ...], given: Mapping[str, Any]) -> None:
    """Check the options before anything is loaded (raises UserError)."""
    from tokenverse_pp.cli.transcribing import are_several

    for name in ("lm", "hotwords"):
        if given[name] is not None and not given[name].exists():
            wanted = " or folder" if name == "lm" else "; expected a file of phrases, one a line"
            raise UserError(f"--{name}: {given[name]}: no such file{wanted}")
    if not audio:
        raise UserError("AUDIO: expected files, folders, manifests of cuts, or - for standard input")
    if given["raw"] and "-" not in audio:
        raise UserError("--raw: is for samples on standard input (-); task tokens in the text: --format raw")
    folder: Optional[Path] = given["output_dir"]
    if folder is not None:
        if url_of(folder) is None:
            if folder.exists() and not folder.is_dir():
                raise UserError(f"--output-dir: {folder}: is a file, expected a folder")
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise UserError(f"--output-dir: {folder}: cannot be written")
        return
    if len(given["formats"]) > 1:
        raise UserError("--format: several formats need --output-dir")
    single = [name for name in given["formats"] if name in ("srt", "vtt", "html")]
    if single and (are_several(audio) or given["channels"] == "each"):
        several = "several inputs" if are_several(audio) else "--channels each"
        raise UserError(f"--format {single[0]}: {several} need{'' if are_several(audio) else 's'} --output-dir")


def run(audio: Tuple[str, ...], given: Mapping[str, Any], options: TranscribeOptions) -> bool:
    """Transcribe and write; returns whether all inputs were transcribed."""
    # torch and lhotse take seconds to import; `--help` and wrong options do not need them.
    from tokenverse_pp.api.model import TokenVerse
    from tokenverse_pp.api.transcribing import ProgressBars
    from tokenverse_pp.base.engine import Parts, current_engine
    from tokenverse_pp.cli.transcribing import NamedRecording, Output, are_several, sources
    from tokenverse_pp.data.audio.inputs import Refused
    from tokenverse_pp.data.distributed import set_threads

    name = known_model(given["model"])
    by_cluster = current_engine().is_cluster
    device, trust = "cpu" if by_cluster else given["device"], given["trust_plugins"]
    model = TokenVerse.from_pretrained(name, given["encoder"], device, trust_plugins=trust)
    threads = set_threads(given["threads"], model.loaded.model)
    if sys.stderr.isatty():
        click.echo(threads, err=True)
    folder: Optional[Path] = given["output_dir"]
    output = Output(given["formats"], folder, are_several(audio) or given["channels"] == "each", given["times"])
    pending: Deque[NamedRecording] = deque()

    def opened() -> Any:
        raw_rate, mix = given["raw_rate"] if given["raw"] else None, given["channels"] == "mix"
        for source in sources(audio, given["recursive"], raw_rate, mix):
            source = output.reserve(source)
            pending.append(source)
            yield source.heard

    is_refused = is_unwritten = False
    parts = Parts(folder / "parts") if by_cluster and folder is not None else None
    if by_cluster:
        results = by_workers(model, opened(), options, given, parts)
        results = ProgressBars().over(results) if sys.stderr.isatty() else results
    else:
        results = model.transcribe_each(opened(), options, progress=sys.stderr.isatty())
    for result in results:
        source = pending.popleft()
        with tqdm.external_write_mode():  # the bars are redrawn below what is written
            reason = result.reason if isinstance(result, Refused) else output.write(source, result)
            if reason:
                is_refused = True
                is_unwritten = is_unwritten or not isinstance(result, Refused)
                click.echo(f"error: {' '.join(reason.split())}", err=True)
    if parts is not None:
        parts.close()
        if not is_unwritten:  # otherwise the next run writes what was computed
            parts.remove()
    return not is_refused


def by_workers(
    model: Any, items: Iterator[Any], options: TranscribeOptions, given: Mapping[str, Any], parts: Any
) -> Iterator[Any]:
    """Run `TokenVerse.transcribe_each` on the workers of a cluster (raises UserError for invalid options)."""
    from tokenverse_pp.api.folders import DEFAULT
    from tokenverse_pp.api.model import RecognizerJob
    from tokenverse_pp.api.transcribing import decode_options, group_line, transcribe_by_cluster
    from tokenverse_pp.decoding.recognizer import Recognizer
    from tokenverse_pp.decoding.run import run_digest

    decoding = decode_options(options, model.loaded.tasks)
    Recognizer(model.loaded, decoding)  # checks the options
    digest = run_digest(model.loaded, decoding)
    start = RecognizerJob(
        group_line,
        given["model"] or DEFAULT,
        given["encoder"],
        decoding,
        digest,
        click.get_current_context().params["plugins"],
        given["trust_plugins"],
        given["device"],
    )
    return transcribe_by_cluster(start, items, decoding, digest, parts, uses_gpu=given["device"] != "cpu")


def list_tasks(model: Optional[str], trust_plugins: bool) -> None:
    """Print the tasks and languages of a model, without loading it."""
    from tokenverse_pp.api.model import known_tasks

    tasks = known_tasks(known_model(model), trust_plugins)
    for task in tasks.tasks:
        tokens = " ".join(task.symbols) or "the words"
        click.echo(printable(f"{task.name:6} {tokens}"))
    if tasks.languages:
        click.echo(printable(f"languages: {', '.join(tasks.languages)}"))
