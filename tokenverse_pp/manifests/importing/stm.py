"""STM: NIST's segment time marks, ``recording channel speaker start end [<label>] text``."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

from tokenverse_pp.manifests.importing.notation import REFUSE, RESOLVE, read_words, split_label
from tokenverse_pp.manifests.importing.rows import BadRow, Place, Rejected, Row, RowOrRejected, seconds
from tokenverse_pp.manifests.importing.textfiles import expect, files_of, records_of, rejected, safe_id
from tokenverse_pp.manifests.lines import BLANKS, fields

FORM = "recording channel speaker start end [<label>] text"
IGNORED = "ignore_time_segment_in_scoring"
GAP = "inter_segment_gap"


def read_stm(path: Path, notation: str = REFUSE) -> Iterator[RowOrRejected]:
    """The turns of STM files. Lines that begin with ``;;`` are comments.

    A segment whose text is ``ignore_time_segment_in_scoring`` has speech that nobody wrote down: it is rejected, and
    a recording that holds one cannot be one cut. A segment without words (a gap between turns, a noise) is rejected
    too, but no cut lacks anything without it; where marks are resolved it is left out as the option asks.

    Args:
        notation: see `tokenverse_pp.manifests.importing.notation`.
    """
    for file in files_of(path, (".stm",)):
        for place, line in records_of(file, ";;", recording_at=0):
            if isinstance(line, Rejected):
                yield line
                continue
            try:
                yield _row(place, line, notation)
            except BadRow as error:
                yield rejected(place, error, line, recording_at=0)


def _row(place: Place, line: str, notation: str) -> RowOrRejected:
    cells = fields(line, maxsplit=5)
    expect(len(cells) >= 5, FORM, line)
    recording, channel, speaker, start, end, *rest = cells
    begin, stop = seconds(start, "start"), seconds(end, "end")
    _, text = split_label(rest[0] if rest else "")
    if text.strip(BLANKS).lower() == IGNORED:
        raise BadRow("a segment that is marked as not to be scored has no transcript")
    words = [] if text.strip(BLANKS).lower() == GAP else read_words(text, notation)
    if not " ".join(words).split():  # nothing, or spaces of Unicode alone
        reason = "its text is empty: a gap between turns, or a sound that is no word"
        return Rejected(place, reason, harmless=True, expected=notation == RESOLVE)
    return Row(
        place,
        f"{safe_id(recording)}-{place.line:06d}",
        recording,
        channel=channel,
        start=begin,
        end=stop,
        text=" ".join(words),
        speaker=speaker,
    )
