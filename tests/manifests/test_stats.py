import pytest
from labelled_cuts import make_cut

from tokenverse_pp.manifests.stats import count_cuts, stats_table

FR = {"text": "un deux trois", "speaker": "a", "language": "fr"}
CUTS = [
    make_cut("f1", [{**FR, "entities": [{"start": 0, "end": 2, "type": "N"}]}], ["asr", "lid", "ner"], duration=1800.0),
    make_cut(
        "f2",
        [{**FR, "endpoint": True}, {**FR, "speaker": "b", "endpoint": True}],
        ["asr", "scd", "endp"],
        duration=3600.0,
    ),
    make_cut("n1", [{"text": "ja", "language": "nl"}], ["asr"], duration=360.0),
    make_cut("u1", [{"text": "hm"}], ["asr"], duration=360.0),
]


def test_counts():
    stats = count_cuts(CUTS)
    assert list(stats) == ["all", "fr", "nl", "unknown"]
    assert stats["all"]["hours"] == pytest.approx(1.7)
    french = stats["fr"]
    assert {key: french[key] for key in ("cuts", "turns", "words", "speakers")} == {
        "cuts": 2, "turns": 3, "words": 9, "speakers": 2,
    }  # fmt: skip
    assert french["tasks"]["ner"] == {
        "labelled": {"cuts": 1, "hours": 0.5},
        "not_labelled": {"cuts": 1, "hours": 1.0},
        "tokens": 2,
    }
    assert {name: counts["tokens"] for name, counts in french["tasks"].items()} == {
        "asr": 9, "scd": 1, "endp": 2, "ner": 2, "lid": 1,
    }  # fmt: skip


def test_groups_add_up():
    stats = count_cuts(CUTS)
    parts = [group for name, group in stats.items() if name != "all"]
    for key in ("cuts", "hours", "turns", "words"):
        assert stats["all"][key] == pytest.approx(sum(part[key] for part in parts))
    for task, counts in stats["all"]["tasks"].items():
        assert counts["labelled"]["cuts"] + counts["not_labelled"]["cuts"] == stats["all"]["cuts"]
        assert counts["tokens"] == sum(part["tasks"][task]["tokens"] for part in parts)


def test_table_shows_labelled_and_not():
    table = stats_table(count_cuts(CUTS))
    assert max(len(line) for line in table.split("\n")) <= 80
    [row] = [line.split() for line in table.split("\n") if line.split()[:2] == ["ner", "fr"]]
    assert row == ["ner", "fr", "0.50", "1", "1.00", "1", "2"]


def test_no_cuts():
    stats = count_cuts([])
    assert stats["all"]["cuts"] == 0
    assert "all" in stats_table(stats)
