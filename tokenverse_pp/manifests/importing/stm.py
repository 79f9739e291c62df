"""STM: NIST's segment time marks, ``recording channel speaker start end [<label>] text``."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

from tokenverse_pp.manifests.importing.rows import BadRow, Place, Rejected, Row, RowOrRejected, seconds
from tokenverse_pp.manifests.importing.textfiles import expect, files_of, lines_of, rejected, safe_id

FORM = "recording channel speaker start end [<label>] text"
IGNORED = "ignore_time_segment_in_scoring"


def read_stm(path: Path) -> Iterator[RowOrRejected]:
    """The turns of STM files. Lines that begin with ``;;`` are comments.

    A segment whose text is ``ignore_time_segment_in_scoring`` has speech that nobody wrote down: it is rejected, and
    a recording that holds one cannot be one cut.
    """
    for file in files_of(path, (".stm",)):
        for place, line in lines_of(file):
            if isinstance(line, Rejected):
                yield line
            elif not line.startswith(";;"):
                try:
                    yield _row(place, line)
                except BadRow as error:
                    yield rejected(place, error, line, recording_at=0)


def _row(place: Place, line: str) -> Row:
    cells = line.split(maxsplit=5)
    expect(len(cells) >= 5, FORM, line)
    recording, channel, speaker, start, end, *rest = cells
    text = rest[0] if rest else ""
    if text.startswith("<") and ">" in text:
        text = text[text.index(">") + 1 :]
    if text.strip().lower() == IGNORED:
        raise BadRow("a segment that is marked as not to be scored has no transcript")
    return Row(
        place,
        f"{safe_id(recording)}-{place.line:06d}",
        recording,
        channel=channel,
        start=seconds(start, "start"),
        end=seconds(end, "end"),
        text=text.strip() or None,
        speaker=speaker,
    )
