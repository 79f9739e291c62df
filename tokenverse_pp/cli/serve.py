"""``tokenverse-pp serve``: a model for many streams at once, over websockets, and a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Tuple

import click

from tokenverse_pp.cli.options import plugin_options


@click.command()
@click.option("--model", help="Folder, name or hub id of a model. [default: human-speech-small, a small example]")
@click.option("--encoder", help="Folder of the model's pretrained encoder, if it is not found.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ..")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all of them.")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0: one that is free.")
@click.option("--tasks", default="", help="Tasks that clients may ask for, with commas. [default: all of the model]")
@click.option("--method", default="greedy", show_default=True, type=click.Choice(["greedy", "beam"]), help="Search.")
@click.option("--beam", default=4, show_default=True, type=click.IntRange(min=1), help="Hypotheses kept a stream.")
@click.option("--chunk-ms", default=640, show_default=True, type=click.IntRange(min=0), help="Audio taken at a time.")
@click.option(
    "--left-chunks", default=4, show_default=True, type=click.IntRange(min=-1), help="Chunks looked back at; -1: all."
)
@click.option(
    "--sinks", default=0, show_default=True, type=click.IntRange(min=0), help="First frames that stay in sight."
)
@click.option(
    "--token-file", type=click.Path(path_type=Path), help="Token that clients must give; or $TOKENVERSE_TOKEN."
)
@click.option("--allow-origin", multiple=True, help="Other web pages that may connect: https://HOST; repeatable.")
@click.option("--max-streams", default=50, show_default=True, help="Streams open at once.")
@click.option("--max-message-bytes", default=1 << 18, show_default=True, help="Of a message; above it, code 1009.")
@click.option("--max-waiting", default=10.0, show_default=True, help="Seconds of a stream's audio that may wait.")
@click.option("--max-seconds", default=4 * 3600.0, show_default=True, help="Seconds of audio in a stream.")
@click.option("--idle-seconds", default=30.0, show_default=True, help="Without a message, before a stream is closed.")
@click.option("--max-unsent-bytes", default=1 << 18, show_default=True, help="Of events that a client has not read.")
@click.option("--batch", default=32, show_default=True, help="Streams that run through the model together.")
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

    from tokenverse_pp.serving.extra import need_websockets

    need_websockets()
    from tokenverse_pp.serving.access import Access, check_origin, read_token
    from tokenverse_pp.serving.limits import Limits

    access = Access(read_token(token_file), tuple(map(check_origin, allow_origin)))
    allowed = Limits(
        streams=limits["max_streams"],
        message_bytes=limits["max_message_bytes"],
        waiting_seconds=limits["max_waiting"],
        stream_seconds=limits["max_seconds"],
        idle_seconds=limits["idle_seconds"],
        unsent_bytes=limits["max_unsent_bytes"],
        batch=limits["batch"],
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("tokenverse_pp.serving").setLevel(logging.INFO)
    if verbose:
        logging.getLogger("tokenverse_pp.serving.websockets").setLevel(logging.DEBUG)
    engine = _engine(
        (model, encoder, device, trust_plugins), tasks, (method, beam), (chunk_ms, left_chunks, sinks), threads
    )
    from tokenverse_pp.serving.run import run_server

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

    from tokenverse_pp.api.locate import ABOUT_DEFAULT, DEFAULT
    from tokenverse_pp.api.model import TokenVerse
    from tokenverse_pp.errors import UserError
    from tokenverse_pp.model.masks import ChunkOptions
    from tokenverse_pp.search.options import SearchOptions
    from tokenverse_pp.serving.engine import build_engine
    from tokenverse_pp.streaming.transcriber import StreamingOptions

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
