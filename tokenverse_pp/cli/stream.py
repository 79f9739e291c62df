"""``tokenverse-pp stream``: a file through a streaming server."""

from __future__ import annotations

import json
from typing import Any, Dict

import click


@click.command()
@click.argument("audio", type=click.Path(dir_okay=False))
@click.option("--url", default="ws://127.0.0.1:8765/stream", show_default=True, help="Of the server's streams.")
@click.option("--tasks", default="", help="Tasks to decode, with commas. [default: all that the server offers]")
@click.option("--real-time", is_flag=True, help="Send no faster than it was spoken.")
@click.option("--format", "format_", default="pcm16", show_default=True, type=click.Choice(["pcm16", "float32"]))
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
    from tokenverse_pp.serving.client import transcribe
    from tokenverse_pp.serving.extra import need_websockets

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
    from tokenverse_pp.api.inputs import open_audio
    from tokenverse_pp.dataset import load_inputs

    return load_inputs(open_audio(path).cut, convert=True).numpy()


def line_of(event: Dict[str, Any]) -> str:
    """An event for people."""
    from tokenverse_pp.errors import printable

    return printable(f"{event['time']:9.2f}  {event['kind']:7}  {event['text']}")
