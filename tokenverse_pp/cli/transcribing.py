"""Inputs (files, folders, manifests, standard input) and outputs (files, terminal) of `tokenverse-pp transcribe`."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Optional, Sequence, Union

import click
import numpy as np

from tokenverse_pp.api.formats import FORMATS
from tokenverse_pp.api.formats.text import UNSURE, clock_time, paragraphs, parts_of, to_html, to_text
from tokenverse_pp.base.errors import CONTROL, UserError, printable
from tokenverse_pp.base.files import url_of, write_text
from tokenverse_pp.cli.groups import error_line
from tokenverse_pp.data.audio import ENDINGS
from tokenverse_pp.data.audio.inputs import Heard, Refused, channels_of, open_audio
from tokenverse_pp.data.manifests import FORMATS as MANIFESTS
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.evaluation.report.utterance import source_of
from tokenverse_pp.tasks.result import Transcript, Turn


def view(transcript: Transcript, label: str, colour: bool = True, times: Optional[bool] = None) -> str:
    """A transcript for a terminal: a heading, and a line per paragraph, with its time unless ``times`` is False.

    >>> from tokenverse_pp.tasks.result import transcript_of_words
    >>> from tokenverse_pp.tasks.result import Word
    >>> said = ["[FR]", "bonjour", "[NE]", "amélie", "[/NE]", "[ENDP]", "[SCD]", "oui"]
    >>> words = [Word(text, i / 2, i / 2 + 0.2, 0.9) for i, text in enumerate(said)]
    >>> print(view(transcript_of_words(words, ["asr", "scd", "endp", "ner", "lid"], 4.0), "call.wav", colour=False))
    call.wav  4.0 s, fr 90%
      0:00.5  bonjour [amélie] ◆
      0:03.5  oui
    """
    about = [f"{transcript.duration:.1f} s"]
    if transcript.language is not None:
        about.append(f"{transcript.language} {transcript.language_confidence or 0:.0%}")
    heading = style(CONTROL.sub("?", label), colour, bold=True) + "  " + style(", ".join(about), colour, dim=True)
    turns = [_line(transcript, turn, colour, times is not False) for turn in paragraphs(transcript)]
    return "\n".join([heading, *(turns or [style("  (nothing was heard)", colour, dim=True)])])


def _line(transcript: Transcript, turn: Turn, colour: bool, has_time: bool) -> str:
    line = ""
    for words, entity, has_end in parts_of(transcript, turn):
        looks = {"fg": "magenta", "bold": True} if entity is not None else {}
        text = "".join(
            (gap if i else "") + style(spelled, colour, **looks, underline=True if word.confidence < UNSURE else None)
            for i, (word, spelled, gap) in enumerate(words)
        )
        if entity is not None:
            text = f"[{text}]" if entity.type is None else f"[{text} {style(entity.type, colour, dim=True)}]"
        line += (words[0].gap if line else "") + text + (" " + style("◆", colour, fg="green") if has_end else "")
    time = f"{style(clock_time(turn.start), colour, fg='cyan')}  " if has_time else ""
    return f"  {time}{line}"


def style(text: str, colour: bool, **looks: Any) -> str:
    """Text with colours, or without."""
    text = printable(text)  # neither a file's name nor a model's vocabulary may control the terminal
    return click.style(text, **looks) if colour and any(looks.values()) else text


STDIN = "-"


class NamedRecording(NamedTuple):
    """A recording: its name for the user, the name of its output files without ending, and the opened audio."""

    label: str
    output: str
    heard: Union[Heard, Refused]


def are_several(audio: Sequence[str]) -> bool:
    """Whether the command line may name more than one recording."""
    return len(audio) > 1 or any(os.path.isdir(name) or name.endswith(MANIFESTS) for name in audio)


def sources(
    audio: Sequence[str], recursive: bool, raw_rate: Optional[int], mix: bool = True
) -> Iterator[NamedRecording]:
    """Yield the recordings in order, each opened when it is needed; a file that is named twice is yielded once.

    Args:
        raw_rate: rate of bare samples on standard input; None for a file there.
        mix: whether to average the channels; otherwise each channel is a recording.
    """
    for source in _whole_sources(audio, recursive, raw_rate, mix):
        if mix or isinstance(source.heard, Refused):
            yield source
            continue
        for part in channels_of(source.heard):
            number = part.name[len(source.heard.name) :]  # "-1", "-2", ..; empty where there is one channel
            yield NamedRecording(part.label if number else source.label, source.output + number, part)


def _whole_sources(
    audio: Sequence[str], recursive: bool, raw_rate: Optional[int], mix: bool
) -> Iterator[NamedRecording]:
    seen = set()
    for name in audio:
        if name == STDIN:
            yield NamedRecording("stdin", "stdin", _stdin(raw_rate, mix))
        elif os.path.isdir(name):
            files = Path(name).rglob("*") if recursive else Path(name).glob("*")
            found = sorted(path for path in files if path.suffix.lower() in ENDINGS and path.is_file())
            if not found:
                deeper = "" if recursive else " (--recursive looks into its folders)"
                yield NamedRecording(name, name, Refused(name, f"{name}: no audio files in this folder{deeper}"))
            for path in found:
                if path.resolve() not in seen:
                    seen.add(path.resolve())
                    heard, output = _open(str(path), mix), str(path.relative_to(name).with_suffix(""))
                    if isinstance(heard, Heard):  # files in subfolders may have the same name
                        heard = dataclasses.replace(heard, name=output)
                    yield NamedRecording(str(path), output, heard)
        elif name.endswith(MANIFESTS):
            yield from _cuts(name)
        elif Path(name).resolve() not in seen:
            seen.add(Path(name).resolve())
            yield NamedRecording(name, Path(name).stem, _open(name, mix))


def _open(name: str, mix: bool) -> Union[Heard, Refused]:
    try:
        return open_audio(name, mix=mix)
    except UserError as error:
        return Refused(name, str(error))


def _cuts(name: str) -> Iterator[NamedRecording]:
    """The cuts of a manifest, up to the first error in it."""
    try:
        for cut in read_cuts(name):
            yield NamedRecording(cut.id, file_name(cut.id), open_audio(cut))
    except UserError as error:
        yield NamedRecording(name, name, Refused(name, str(error)))


def file_name(cut_id: str) -> str:
    """A cut's id as a file name: no path separators or control characters."""
    return re.sub(r"[/\\]|" + CONTROL.pattern, "-", cut_id)


def _stdin(raw_rate: Optional[int], mix: bool) -> Union[Heard, Refused]:
    if sys.stdin.isatty():
        return Refused("stdin", "stdin: expected audio from a pipe or file, not a terminal")
    data = sys.stdin.buffer.read()
    try:
        if raw_rate is None:
            return open_audio(data, label="stdin", mix=mix)
        if len(data) % 2:
            raise UserError(f"stdin: --raw: expected samples of 2 bytes, got {len(data)} bytes")
        return open_audio((np.frombuffer(data, "<i2"), raw_rate), label="stdin")
    except UserError as error:
        return Refused("stdin", str(error))


LINES = ("text", "raw")  # formats whose lines follow the file's name if there are several files
FIELDS = ("rttm", "stm", "ctm")  # formats whose lines have the name of the recording in a field


class Output:
    """Where transcripts are written.

    Args:
        formats: formats of the command line; none for text (on a terminal: `view`).
        folder: folder for files; None for standard output.
        several: whether there may be more than one recording.
        times: whether paragraphs begin with their times; None: as `to_text` and `to_html` do.
    """

    def __init__(self, formats: Sequence[str], folder: Optional[Path], several: bool, times: Optional[bool] = None):
        self.is_terminal = folder is None and sys.stdout.isatty()
        self.for_people = self.is_terminal and not formats
        self.formats = list(dict.fromkeys(formats)) or ["text"]
        self.folder, self.several, self.times = folder, several, times
        self._taken: Dict[str, str] = {}

    def reserve(self, source: NamedRecording) -> NamedRecording:
        """The recording under a unique name: with a number if another one has the same name (noted on stderr)."""
        if isinstance(source.heard, Refused) or (self.folder is None and self.formats[0] not in FIELDS):
            return source
        name = wanted = source.output if self.folder is not None else source.heard.name
        # Of files by their endings, as text of a.raw.wav and raw of a.wav are both a.raw.txt.
        endings = [FORMATS[each].ending for each in self.formats] if self.folder is not None else [""]
        number = 2
        while any(name + ending in self._taken for ending in endings):
            name, number = f"{wanted}-{number}", number + 1
        if name != wanted:
            other = next(self._taken[wanted + ending] for ending in endings if wanted + ending in self._taken)
            click.echo(f"{source.label}: named {name}, since {other} is {wanted}", err=True)
        self._taken.update((name + ending, source.label) for ending in endings)
        tail = name[len(wanted) :]
        heard = dataclasses.replace(source.heard, name=source.heard.name + tail)
        return source._replace(output=source.output + tail, heard=heard)

    def write(self, source: NamedRecording, transcript: Transcript) -> str:
        """Write one transcript; returns the reason if that failed, otherwise an empty string."""
        if self.folder is None:
            self._print(source, transcript)
            return ""
        for name in self.formats:
            target = self.folder / (source.output + FORMATS[name].ending)
            try:
                write_text(target, self._content(name, source, transcript, target.parent))
            except UserError as error:  # the upload to a URL failed
                return f"{source.label}: {error}"
            except OSError as error:
                return f"{source.label}: cannot write {error_line(error) or target}"
            click.echo(printable(url_of(target) or str(target)))
        return ""

    def _print(self, source: NamedRecording, transcript: Transcript) -> None:
        if self.for_people:
            click.echo(view(transcript, source.label, not os.environ.get("NO_COLOR"), self.times), color=True)
            return
        name = self.formats[0]
        joined = FORMATS[name].joined
        if joined is None or name == "text":
            content = self._content(name, source, transcript, Path())
        else:
            content = joined(transcript)
        if self.several and name in LINES:
            content = "".join(f"{source.label}: {line}\n" for line in content.splitlines() or [""])
        # Only a terminal needs escapes.
        click.echo(printable(content) if self.is_terminal else content, nl=False)

    def _content(self, name: str, source: NamedRecording, transcript: Transcript, folder: Path) -> str:
        """The content of a file; an HTML page embeds the audio, or links to it if it is long."""
        if name == "html" and isinstance(source.heard, Heard):
            return to_html(transcript, source_of(source.heard.cut, folder.resolve(), embed=True), self.times)
        if name == "text":
            return to_text(transcript, self.times)
        return FORMATS[name].write(transcript)
