"""Cuts as the label checks see them, straight from a row of JSON.

Building lhotse's cut, supervisions, recording and audio sources takes longer than checking the labels in them. A row
of the usual shape (a MonoCut with a recording and no stored features) is read here without; any other row goes
through lhotse, and so does every row that lhotse might refuse.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, cast

from lhotse.cut import Cut

from tokenverse_pp.manifests.rows import Row, cut_of
from tokenverse_pp.tasks.turns import FixedTurns

_CUT_NEEDS = frozenset(("id", "start", "duration", "channel"))
_CUT_MAY = _CUT_NEEDS | {"type", "supervisions", "recording", "custom"}
_TURN_NEEDS = frozenset(("id", "recording_id", "start", "duration"))
_TURN_MAY = _TURN_NEEDS | {"channel", "text", "language", "speaker", "gender", "custom"}
_RECORDING_NEEDS = frozenset(("id", "sources", "sampling_rate", "num_samples", "duration"))
_RECORDING_MAY = _RECORDING_NEEDS | {"channel_ids"}
_SOURCE = frozenset(("type", "channels", "source"))


class PlainTurn:
    """The fields of a supervision that labels stand in; see `lhotse.SupervisionSegment`."""

    __slots__ = ("custom", "duration", "language", "speaker", "start", "text")

    def __init__(self, data: Dict[str, Any]):
        get = data.get
        self.start = data["start"]
        self.duration = data["duration"]
        self.text = get("text")
        self.speaker = get("speaker")
        self.language = get("language")
        self.custom = get("custom")

    @property
    def end(self) -> float:
        """Seconds; rounded as lhotse does."""
        return round(self.start + self.duration, ndigits=8)


class PlainCut(FixedTurns):
    """The fields of a cut that labels stand in; see `lhotse.cut.Cut`."""

    def __init__(self, data: Dict[str, Any]):
        self.id = data["id"]
        self.duration = data["duration"]
        self.custom = data.get("custom")
        self.supervisions: List[PlainTurn] = [PlainTurn(item) for item in data.get("supervisions", ())]


def labelled_cut(row: Row) -> Cut:
    """What to ask for a row's labels: a `PlainCut` where that is enough, otherwise lhotse's cut.

    Raises:
        UserError: where lhotse cannot read the row.
    """
    if is_plain(row.data):
        return cast(Cut, PlainCut(row.data))
    return cut_of(row.data, row.where)


def is_plain(data: Dict[str, Any]) -> bool:
    """True for a row that lhotse is sure to read, and that has nothing which changes how its labels are read."""
    supervisions = data.get("supervisions", [])
    return (
        data.get("type") == "MonoCut"
        and _has(data, _CUT_NEEDS, _CUT_MAY)
        and isinstance(supervisions, list)
        and all(_has(item, _TURN_NEEDS, _TURN_MAY) and _is_plain_custom(item.get("custom")) for item in supervisions)
        and _is_plain_custom(data.get("custom"))
        and ("recording" not in data or (_is_plain_recording(data["recording"]) and _lies_inside(data)))
    )


def _has(item: Any, needs: frozenset[str], may: frozenset[str]) -> bool:
    return isinstance(item, dict) and needs <= item.keys() <= may


def _is_plain_custom(custom: Optional[Any]) -> bool:
    """Nothing that lhotse would read as a recording or an image."""
    if custom is None:
        return True
    return isinstance(custom, dict) and not any(
        isinstance(value, dict) and ("sources" in value or "width" in value) for value in custom.values()
    )


def _lies_inside(data: Dict[str, Any]) -> bool:
    """The cut lies in its recording; what `check_cut` says of any other needs the recording."""
    times = data["start"], data["duration"], data["recording"]["duration"]
    if not all(type(time) in (int, float) for time in times):
        return False
    start, seconds, whole = times
    try:
        return 0 <= start <= start + seconds <= whole
    except OverflowError:  # a whole number that no float holds
        return False


def _is_plain_recording(recording: Any) -> bool:
    if not _has(recording, _RECORDING_NEEDS, _RECORDING_MAY):
        return False
    if recording.get("channel_ids") is None:  # lhotse works them out, and can fail at that
        return False
    sources = recording["sources"]
    return isinstance(sources, list) and all(_has(source, _SOURCE, _SOURCE) for source in sources)
