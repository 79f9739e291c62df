"""Labelled cuts for tests: a builder and counts (pytest puts this folder on the path, because of its conftest.py)."""

from lhotse import MonoCut, SupervisionSegment

from tokenverse_pp.data.editing.stats import Statistics


def make_cut(cut_id, turns, tasks=("asr",), duration=None, **custom):
    """A cut without audio, of turns that are dictionaries of fields.

    Of a turn everything may be left out but ``text``: it lasts a second, and the next follows after half a second.
    ``entities`` and ``endpoint`` go into its custom fields. ``tasks`` None leaves the list of tasks out.
    """
    supervisions = []
    for i, turn in enumerate(turns):
        fields = {"start": 1.5 * i, "duration": 1.0, **turn}
        labels = {key: fields.pop(key) for key in ("entities", "endpoint") if key in fields}
        own = {**fields.pop("custom", {}), **labels}
        supervisions.append(SupervisionSegment(f"{cut_id}-{i}", cut_id, custom=own, **fields))
    if tasks is not None:
        custom["tasks"] = list(tasks)
    seconds = 1.5 * len(turns) if duration is None else duration
    return MonoCut(cut_id, 0.0, seconds, 0, supervisions=supervisions, custom=custom)


def count_cuts(cuts):
    """The counts of valid cuts over all and by language: see `Statistics.by_language`."""
    statistics = Statistics()
    for cut in cuts:
        statistics.add(cut)
    return statistics.by_language()
