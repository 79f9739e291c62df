"""``tokenverse-pp serve``: a model for many streams at once, over websockets, and a web page.

``tokenverse-pp stream``: a file through a streaming server.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import click

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.cli.options import options_from, plugin_options
from tokenverse_pp.serving.protocol import Limits


@click.command()
@click.option("--model", help="Folder, name or hub id of a model. [default: human-speech-small, a small example]")
@click.option("--encoder", help="Folder of the model's pretrained encoder, if it is not found.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ..")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all of them.")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0: one that is free.")
@click.option("--tasks", default="", help="Tasks that clients may ask for, with commas. [default: all of the model]")
@options_from(
    SearchOptions,
    *("method", "beam"),
    method={"type": click.Choice(["greedy", "beam"]), "default": "greedy", "help": "Search method of the streams."},
    beam={"type": click.IntRange(min=1)},
)
@options_from(
    ChunkOptions,
    *("chunk_ms", "left_chunks", "sinks"),
    chunk_ms={"type": click.IntRange(min=0), "help": "Length of a chunk in milliseconds."},
    left_chunks={"type": click.IntRange(min=-1)},
    sinks={"type": click.IntRange(min=0)},
)
@click.option(
    "--token-file", type=click.Path(path_type=Path), help="Token that clients must give; or $TOKENVERSE_TOKEN."
)
@click.option("--allow-origin", multiple=True, help="Other web pages that may connect: https://HOST; repeatable.")
@options_from(
    Limits,
    *("streams", "message_bytes", "waiting_seconds", "stream_seconds", "idle_seconds", "unsent_bytes", "batch"),
    streams={"option": "--max-streams"},
    message_bytes={"option": "--max-message-bytes"},
    waiting_seconds={"option": "--max-waiting"},
    stream_seconds={"option": "--max-seconds"},
    unsent_bytes={"option": "--max-unsent-bytes"},
)
@click.option("--threads", type=click.IntRange(min=1), help="Of torch. [default: as many as there are cores]")
@click.option("-v", "--verbose", is_flag=True, help="Log what the websockets library does too.")
@plugin_options
def serve(
    model: Optional[str],
    encoder: Optional[str],
    device: str,
    host: str,
    port: int,
    tasks: str,
    method: str,
    beam: int,
    chunk_ms: int,
    left_chunks: int,
    sinks: int,
    token_file: Optional[Path],
    allow_origin: Tuple[str, ...],
    threads: Optional[int],
    verbose: bool,
    trust_plugins: bool,
    **limits: Any,
) -> None:
    """Transcribe streams of audio while they are spoken.

    The page at http://HOST:PORT/ takes a microphone or a file; programs connect to ws://HOST:PORT/stream, as
    docs/streaming_protocol.md says (in Python: tokenverse_pp.serving.client). /health tells the state as JSON.

    SIGINT (Ctrl-C) and SIGTERM close all streams with code 1001 and end the server with exit code 0.

    Words and audio are not logged. There is no TLS here: in front of other machines, put a proxy that has it.
    """
    import logging

    from tokenverse_pp.serving.client import need_websockets

    need_websockets()
    from tokenverse_pp.serving.access import Access, check_origin, read_token

    access = Access(read_token(token_file), tuple(map(check_origin, allow_origin)))
    allowed = Limits(**limits)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("tokenverse_pp.serving").setLevel(logging.INFO)
    if verbose:
        logging.getLogger("tokenverse_pp.serving.websockets").setLevel(logging.DEBUG)
    engine = _engine(
        (model, encoder, device, trust_plugins), tasks, (method, beam), (chunk_ms, left_chunks, sinks), threads
    )
    from tokenverse_pp.serving.server import run_server

    run_server(engine, allowed, access, host, port)


def _engine(
    where: Tuple[Optional[str], Optional[str], str, bool],
    tasks: str,
    search: Tuple[str, int],
    chunks: Tuple[int, int, int],
    threads: Optional[int],
) -> Any:
    """The model, loaded and ready to stream (raises UserError)."""
    import torch

    from tokenverse_pp.api.folders import ABOUT_DEFAULT, DEFAULT
    from tokenverse_pp.api.model import TokenVerse
    from tokenverse_pp.base.errors import UserError
    from tokenverse_pp.decoding.streaming.transcriber import StreamingOptions
    from tokenverse_pp.serving.worker import build_engine

    if threads:
        torch.set_num_threads(threads)
    model, encoder, device, trust_plugins = where
    if model is None:
        click.echo(f"model: {ABOUT_DEFAULT}", err=True)
    loaded = TokenVerse.from_pretrained(model or DEFAULT, encoder, device, trust_plugins=trust_plugins).loaded
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    for name in names:
        if name not in loaded.tasks:
            raise UserError(f"--tasks {tasks}: {model or DEFAULT} knows {', '.join(loaded.tasks.names)}, not {name!r}")
    options = StreamingOptions(
        chunks=ChunkOptions(chunk_ms=chunks[0], left_chunks=chunks[1], sinks=chunks[2]),
        tasks=names,
        search=SearchOptions(method=search[0], beam=search[1]),
    )
    return build_engine(loaded, options)


@click.command()
@click.argument("audio", type=click.Path(dir_okay=False))
@click.option("--url", default="ws://127.0.0.1:8765/stream", show_default=True, help="Of the server's streams.")
@click.option("--tasks", default="", help="Tasks to decode, with commas. [default: all that the server offers]")
@click.option("--real-time", is_flag=True, help="Send no faster than it was spoken.")
@click.option(
    "--format",
    "format_",
    default="pcm16",
    show_default=True,
    type=click.Choice(["pcm16", "float32"]),
    help="Number type of the samples sent.",
)
@click.option("--partials/--no-partials", default=True, show_default=True, help="Show what may still change.")
@click.option("--reset-at-endpoint", is_flag=True, help="Let the search begin anew at each [ENDP].")
@click.option("--token-file", type=click.Path(dir_okay=False), help="Token for the server; or $TOKENVERSE_TOKEN.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
def stream(
    audio: str,
    url: str,
    tasks: str,
    real_time: bool,
    format_: str,
    partials: bool,
    reset_at_endpoint: bool,
    token_file: str,
    as_json: bool,
) -> None:
    """Send AUDIO to a streaming server (`tokenverse-pp serve`), and print what it says as it says it.

    Any rate and number of channels: channels are averaged, then resampled to 16 kHz.
    """
    # torch and lhotse take seconds to import: not for `--help`.
    from pathlib import Path

    from tokenverse_pp.serving.access import read_token
    from tokenverse_pp.serving.client import need_websockets, transcribe

    need_websockets()
    token = read_token(Path(token_file) if token_file else None)
    names = [name.strip() for name in tasks.split(",") if name.strip()]

    def show(event: Dict[str, Any]) -> None:
        click.echo(json.dumps(event, ensure_ascii=False) if as_json else line_of(event))

    transcribe(
        url,
        samples_of(audio),
        on_event=show,
        real_time=real_time,
        tasks=names or None,
        format=format_,
        partials=partials,
        reset_at_endpoint=reset_at_endpoint,
        token=token,
    )


def samples_of(path: str) -> Any:
    """The samples ``(S,)`` of an audio file at 16 kHz (raises UserError)."""
    from tokenverse_pp.data.audio.inputs import open_audio
    from tokenverse_pp.data.dataset import load_inputs

    return load_inputs(open_audio(path).cut, convert=True).numpy()


def line_of(event: Dict[str, Any]) -> str:
    """An event for people."""
    from tokenverse_pp.base.errors import printable

    return printable(f"{event['time']:9.2f}  {event['kind']:7}  {event['text']}")
