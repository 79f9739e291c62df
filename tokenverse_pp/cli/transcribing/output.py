"""Transcripts -> files, a pipe or a terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Dict, Optional, Sequence, Union

import click

from tokenverse_pp.api.formats import FORMATS
from tokenverse_pp.api.formats.html import to_html
from tokenverse_pp.api.inputs import Heard, Refused
from tokenverse_pp.api.transcript import Transcript
from tokenverse_pp.cli.groups import error_line
from tokenverse_pp.cli.transcribing.inputs import Source
from tokenverse_pp.cli.transcribing.view import view
from tokenverse_pp.errors import printable
from tokenverse_pp.files import write_text
from tokenverse_pp.report_page.audio import source_of

LINES = ("text", "raw")  # formats whose lines stand behind the file's name where there are several files
FIELDS = ("rttm", "stm", "ctm")  # formats whose lines have the name of the recording in a field


class Output:
    """Where transcripts go.

    Args:
        formats: as the command line names them; none for text (on a terminal: for people).
        folder: for files; None for standard output.
        several: whether there may be more than one recording.
    """

    def __init__(self, formats: Sequence[str], folder: Optional[Path], several: bool):
        self.is_terminal = folder is None and sys.stdout.isatty()
        self.for_people = self.is_terminal and not formats
        self.formats = list(dict.fromkeys(formats)) or ["text"]
        self.folder, self.several = folder, several
        self._taken: Dict[str, str] = {}

    def reserve(self, source: Source) -> Union[Heard, Refused]:
        """The recording, or why it cannot be written: two would have the same name."""
        if isinstance(source.heard, Refused) or (self.folder is None and self.formats[0] not in FIELDS):
            return source.heard
        name = source.output if self.folder is not None else source.heard.name
        other = self._taken.get(name)
        if other is None:
            self._taken[name] = source.label
            return source.heard
        target = f"recording {name!r}"
        if self.folder is not None:
            target = str(self.folder / (name + FORMATS[self.formats[0]].ending))
        return Refused(source.label, f"{source.label}: {target} would be that of {other} too; left out")

    def write(self, source: Source, transcript: Transcript) -> str:
        """Write one transcript; returns why that was not possible, or nothing."""
        if self.folder is None:
            self._print(source, transcript)
            return ""
        for name in self.formats:
            target = self.folder / (source.output + FORMATS[name].ending)
            try:
                write_text(target, self._content(name, source, transcript, target.parent))
            except OSError as error:
                return f"{source.label}: cannot write {error_line(error) or target}"
            click.echo(printable(str(target)))
        return ""

    def _print(self, source: Source, transcript: Transcript) -> None:
        if self.for_people:
            click.echo(view(transcript, source.label, colour=not os.environ.get("NO_COLOR")), color=True)
            return
        name = self.formats[0]
        joined = FORMATS[name].joined
        if joined is None:
            content = self._content(name, source, transcript, Path())
        else:
            content = joined(transcript)
        if self.several and name in LINES:
            content = "".join(f"{source.label}: {line}\n" for line in content.splitlines() or [""])
        # A file or pipe gets what was heard as it is.
        click.echo(printable(content) if self.is_terminal else content, nl=False)

    def _content(self, name: str, source: Source, transcript: Transcript, folder: Path) -> str:
        """What a file of a format holds; a page has the audio in it, or, of a long recording, links to it."""
        if name == "html" and isinstance(source.heard, Heard):
            return to_html(transcript, source_of(source.heard.cut, folder.resolve(), embed=True))
        return FORMATS[name].write(transcript)
