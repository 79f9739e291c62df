"""Arguments and options that the `tokenverse-pp manifest prepare` commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import click

from tokenverse_pp.manifests.conversations import DEFAULT_OPTIONS, ENDPOINT_RULES, OVERLAP_RULES, ConversationOptions
from tokenverse_pp.manifests.normalise import NORMALISERS

Command = Callable[..., Any]


def _together(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


folders = _together(
    click.argument("corpus_dir", type=click.Path(file_okay=False, path_type=Path)),
    click.argument("output_dir", metavar="OUT", type=click.Path(file_okay=False, path_type=Path)),
)
normaliser_option = click.option(
    "--normaliser",
    type=click.Choice(list(NORMALISERS)),
    default="words",
    show_default=True,
    help="words: lower case, no punctuation, apostrophes and accents kept; cased: the same, case kept; none: as it is, "
    "brackets apart. tokenverse_pp/manifests/normalise.py has the rules by language.",
)
jobs_option = click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that read and convert audio."
)
common = _together(folders, normaliser_option, jobs_option)
languages_option = click.option(
    "--language",
    "languages",
    multiple=True,
    help="A language folder of the corpus; give it several times. [default: all that are there]",
)
transcripts_option = click.option(
    "--transcripts",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the transcripts, where it is not in CORPUS_DIR.",
)
channels_option = click.option(
    "--channels",
    type=click.Choice(["mixed", "separate"]),
    default="mixed",
    show_default=True,
    help="The two sides of a call as one channel (their mean), or each by itself (then not labelled for scd).",
)
names_option = click.option(
    "--names",
    is_flag=True,
    help="Label ner too: proper names, type NAME, as far as the transcribers marked them (&Bob).",
)
_windows = _together(
    click.option(
        "--max-seconds",
        type=click.FloatRange(min=0, min_open=True),
        default=DEFAULT_OPTIONS.max_seconds,
        show_default=True,
        help="Longest window.",
    ),
    click.option(
        "--max-gap",
        type=click.FloatRange(min=0),
        default=DEFAULT_OPTIONS.max_gap,
        show_default=True,
        help="A longer silence (s) begins a new window.",
    ),
    click.option(
        "--margin",
        type=click.FloatRange(min=0),
        default=DEFAULT_OPTIONS.margin,
        show_default=True,
        help="Silence (s) kept before and after a window, half of what there is at most.",
    ),
    click.option(
        "--endpoints",
        type=click.Choice(ENDPOINT_RULES),
        default=DEFAULT_OPTIONS.endpoints,
        show_default=True,
        help="punctuation: a turn ends in a semantic endpoint where its transcript ends in . ? !; pause: where the "
        "speaker then says nothing for --pause seconds or somebody else begins before them; auto: by punctuation where "
        "the transcript has any, else by pause.",
    ),
    click.option(
        "--pause",
        type=click.FloatRange(min=0),
        default=DEFAULT_OPTIONS.pause,
        show_default=True,
        help="See --endpoints; seconds.",
    ),
    click.option(
        "--overlaps",
        type=click.Choice(OVERLAP_RULES),
        default=DEFAULT_OPTIONS.overlaps,
        show_default=True,
        help="Where two speak at once: keep both, written one after the other by start time, or drop the stretch.",
    ),
)


def window_options(command: Command) -> Command:
    """The options of `ConversationOptions`, handed to the command as one argument ``options``."""

    def gathered(*args: Any, **kwargs: Any) -> Any:
        values = {name: kwargs.pop(name) for name in ConversationOptions.__dataclass_fields__}
        return command(*args, options=ConversationOptions(**values), **kwargs)

    gathered.__doc__ = command.__doc__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return _windows(gathered)
