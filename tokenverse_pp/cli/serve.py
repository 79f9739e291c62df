"""`tokenverse-pp serve`: a model for streams (websockets), uploads (OpenAI's API) and a page; `stream`: a client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

import click

from tokenverse_pp.base.config import IN_CHUNKS, ChunkOptions
from tokenverse_pp.base.errors import printable
from tokenverse_pp.base.options import SearchOptions, StreamingOptions, TranscribeOptions, names_of, tasks_named
from tokenverse_pp.cli.options import (
    FILE,
    PATH,
    TOKEN_BIAS,
    chosen,
    device_option,
    known_model,
    model_options,
    options_from,
    plugin_options,
    threads_option,
)
from tokenverse_pp.serving.protocol import Limits


@click.command()
@model_options
@device_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all addresses.")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0: any free port.")
@click.option(
    "--model-name", help="Name of the model for /v1/models and uploads. [default: that of its folder, or its id]"
)
@click.option("--tasks", help="Tasks that clients may request, e.g. asr,scd. [default: all of the model]")
@options_from(StreamingOptions, "inactive")
@options_from(
    TranscribeOptions,
    *("language", "hotwords", "lm"),
    language={
        "type": str,
        "help": "What is spoken, e.g. fr or fr,nl, in streams and uploads that do not say. Needs the task lid.",
    },
    hotwords={
        "type": PATH,
        "help": "File of phrases to prefer: 'phrase [TAB bonus]', for streams and uploads that bring none.",
    },
    lm={
        "type": PATH,
        "help": "Language model for shallow fusion, or a folder with one per language, for uploads, and for streams "
        "that do not refuse it.",
    },
)
@options_from(
    SearchOptions,
    *("hotword_score", "lm_scale", "lm_bonus", "blank_penalty", "token_bias", "method", "beam"),
    token_bias=TOKEN_BIAS,
    method={
        "type": click.Choice(["greedy", "beam"]),
        "default": None,
        "help": "Search method. [default: for uploads beam; for streams greedy, beam with hotwords or an LM]",
    },
    beam={"type": click.IntRange(min=1)},
)
@options_from(
    ChunkOptions,
    *IN_CHUNKS,
    chunk_ms={"type": click.IntRange(min=0), "help": "Length of a chunk in milliseconds."},
    left_chunks={"type": click.IntRange(min=-1)},
    sinks={"type": click.IntRange(min=0)},
)
@click.option("--token-file", type=PATH, help="File with the token that clients must send; or $TOKENVERSE_TOKEN.")
@click.option("--allow-origin", multiple=True, help="Other web pages that may connect: https://HOST; repeatable.")
@options_from(
    Limits,
    *("streams", "message_bytes", "waiting_seconds", "stream_seconds", "idle_seconds", "unsent_bytes", "batch"),
    *("uploads", "upload_bytes"),
    streams={"option": "--max-streams"},
    message_bytes={"option": "--max-message-bytes"},
    waiting_seconds={"option": "--max-waiting"},
    stream_seconds={"option": "--max-seconds"},
    unsent_bytes={"option": "--max-unsent-bytes"},
    uploads={"option": "--max-uploads"},
    upload_bytes={"option": "--max-upload-bytes"},
)
@threads_option
@click.option("-v", "--verbose", is_flag=True, help="Also log messages of the HTTP library.")
@plugin_options
def serve(
    host: str, port: int, token_file: Optional[Path], allow_origin: Tuple[str, ...], verbose: bool, **given: Any
) -> None:
    """Transcribe streams of audio while they are spoken, and uploaded files.

    The page at http://HOST:PORT/ transcribes a microphone or a file. Programs connect to ws://HOST:PORT/stream
    (docs/streaming_protocol.md; in Python: tokenverse_pp.serving.client). Clients of OpenAI's audio API use
    http://HOST:PORT/v1 as their base URL and upload files (docs/openai_api.md). /health returns the state as JSON,
    /healthz is for supervisors, /metrics for Prometheus (docs/deployment.md).

    SIGINT (Ctrl-C) and SIGTERM close all streams with code 1001 and end the server with exit code 0.

    Words and audio are not logged. The server has no TLS: for other machines, put a proxy with TLS in front of it.
    """
    import logging

    from tokenverse_pp.serving.client import need_server

    need_server()
    from tokenverse_pp.serving.access import Access, check_origin, read_token

    access = Access(read_token(token_file), tuple(map(check_origin, allow_origin)))
    allowed = chosen(Limits, given)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("tokenverse_pp.serving").setLevel(logging.INFO)
    if verbose:
        logging.getLogger("tokenverse_pp.serving.http").setLevel(logging.DEBUG)
    engine, uploads = _models(given)
    from tokenverse_pp.serving.server import run_server

    run_server(engine, allowed, access, host, port, uploads)


def _models(given: Mapping[str, Any]) -> Tuple[Any, Any]:
    """Load the model; return it for streams and for uploads (raises UserError)."""
    import logging

    from tokenverse_pp.api.model import TokenVerse
    from tokenverse_pp.data.distributed import set_threads
    from tokenverse_pp.serving.uploads import build_upload_model
    from tokenverse_pp.serving.worker import build_engine

    model, trust = known_model(given["model"]), given["trust_plugins"]
    loaded = TokenVerse.from_pretrained(model, given["encoder"], given["device"], trust_plugins=trust).loaded
    log = logging.getLogger("tokenverse_pp.serving")
    log.info(set_threads(given["threads"], loaded.model))
    tasks = tasks_named(given["tasks"], "--tasks") or ()
    loaded.tasks.chosen(tasks, "--tasks: ")
    has_language = "lid" in (tasks or loaded.tasks)
    options = StreamingOptions(
        chosen(ChunkOptions, given), tasks, _search(given, has_language), inactive=given["inactive"]
    )
    engine = build_engine(loaded, options)
    folder = Path(model).expanduser()
    name = given["model_name"] or (folder.resolve().name if folder.is_dir() else str(model))
    log.info("model: %s, as %r to clients; tasks: %s", model, name, ", ".join(tasks or loaded.tasks.names))
    return engine, build_upload_model(loaded, name, _transcription(given, given["method"] or SearchOptions().method))


def _transcription(given: Mapping[str, Any], method: Any) -> TranscribeOptions:
    """The transcription options, with this search method (raises UserError)."""
    own = {"tasks": tasks_named(given["tasks"], "--tasks"), "language": names_of(given["language"]) or None}
    search = chosen(SearchOptions, given, method=method, hotwords=None, lm=None)
    return chosen(TranscribeOptions, given, **own, search=search, method=None, beam=None)


def _search(given: Mapping[str, Any], has_language: bool) -> SearchOptions:
    """The default search options of streams, by the rules of `transcribe` (raises UserError)."""
    from tokenverse_pp.api.transcribing import search_options

    needs_beam = given["hotwords"] is not None or given["lm"] is not None
    method = given["method"] or ("beam" if needs_beam else "greedy")
    return search_options(_transcription(given, method), has_language)


@click.command()
@click.argument("audio", type=FILE)
@click.option("--url", default="ws://127.0.0.1:8765/stream", show_default=True, help="Address of the server's streams.")
@click.option("--tasks", help="Tasks to decode, e.g. asr,scd. [default: all that the server offers]")
@click.option("--real-time", is_flag=True, help="Send at the speed of the recording.")
@click.option(
    "--format",
    default="pcm16",
    show_default=True,
    type=click.Choice(["pcm16", "float32"]),
    help="Number type of the samples sent.",
)
@click.option(
    "--partials/--no-partials", default=True, show_default=True, help="Show partial results, which may still change."
)
@click.option("--pauses", is_flag=True, help="In pauses, show the probability that the utterance is complete.")
@click.option("--reset-at-endpoint", is_flag=True, help="Restart the search at each [ENDP].")
@click.option("--language", help="Spoken language, e.g. fr, or several: fr,nl. [default: that of the server]")
@click.option(
    "--hotwords", type=PATH, help="File of phrases to prefer: 'phrase [TAB bonus]'. [default: those of the server]"
)
@click.option(
    "--lm/--no-lm", default=None, help="Use the server's language model (serve --lm). [default: if it has one]"
)
@options_from(
    SearchOptions,
    *("hotword_score", "lm_scale", "lm_bonus"),
    hotword_score={
        "default": None,
        "help": "Bonus in nats for each token of a phrase that has none. [default: as the server was started]",
    },
    lm_scale={"default": None, "help": "Scale of the server's language model. [default: as the server was started]"},
    lm_bonus={"default": None, "help": "Added for each token that it scores. [default: as the server was started]"},
)
@click.option("--token-file", type=FILE, help="File with the server's token; or $TOKENVERSE_TOKEN.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
def stream(
    audio: str,
    token_file: Optional[str],
    tasks: Optional[str],
    language: Optional[str],
    hotwords: Optional[Path],
    as_json: bool,
    **given: Any,
) -> None:
    """Send AUDIO to a streaming server (`tokenverse-pp serve`), and print its events as they arrive.

    AUDIO may have any rate and number of channels. Channels are averaged, then resampled to 16 kHz.
    """
    # torch and lhotse take seconds to import; `--help` does not need them.
    from tokenverse_pp.data.audio.inputs import open_audio
    from tokenverse_pp.data.dataset import load_inputs
    from tokenverse_pp.decoding.context_graph import read_hotwords
    from tokenverse_pp.serving.access import read_token
    from tokenverse_pp.serving.client import need_websockets, transcribe
    from tokenverse_pp.serving.protocol import NEVER_IN_CHUNKS

    need_websockets()
    given["token"] = read_token(Path(token_file) if token_file else None)
    given["tasks"], given["language"] = tasks_named(tasks, "--tasks"), names_of(language) or None
    given["hotwords"] = None if hotwords is None else read_hotwords(hotwords)

    def begin(ready: Dict[str, Any]) -> None:
        if not ready.get("trained_in_chunks", True):  # older servers do not send it
            click.echo(f"warning: {NEVER_IN_CHUNKS}", err=True)

    def show(event: Dict[str, Any]) -> None:
        click.echo(json.dumps(event, ensure_ascii=False) if as_json else line_of(event))

    samples = load_inputs(open_audio(audio).cut, convert=True).numpy()
    transcribe(audio=samples, on_event=show, on_ready=begin, **given)


def line_of(event: Dict[str, Any]) -> str:
    """An event as a line of text."""
    text = f"complete {event['endpoint']:.2f}" if event["kind"] == "pause" else event["text"]
    return printable(f"{event['time']:9.2f}  {event['kind']:7}  {text}")
