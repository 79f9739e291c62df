"""Statistics of manifests, their plot, and single cuts as text."""

import pytest
from importing_cases import run
from labelled_cuts import count_cuts, make_cut
from lhotse import CutSet

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.editing.stats import count_manifests, plot_stats, shares_table, stats_table

FR = {"text": "un deux trois", "speaker": "a", "language": "fr"}
TWO = [{**FR, "endpoint": True}, {**FR, "speaker": "b", "endpoint": True}]
CUTS = [
    make_cut("f1", [{**FR, "entities": [{"start": 0, "end": 2, "type": "N"}]}], ["asr", "lid", "ner"], duration=1800.0),
    make_cut("f2", TWO, ["asr", "scd", "endp"], duration=3600.0),
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
        "machine": {"cuts": 0, "hours": 0.0},
        "not_labelled": {"cuts": 1, "hours": 1.0},
        "tokens": 2,
    }
    assert {name: counts["tokens"] for name, counts in french["tasks"].items()} == {
        "asr": 9, "scd": 1, "endp": 2, "ner": 2, "lid": 1, "punct": 0,
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
    assert max(len(line) for line in table.split("\n")) <= 100
    [row] = [line.split() for line in table.split("\n") if line.split()[:2] == ["ner", "fr"]]
    assert row == ["ner", "fr", "0.50", "1", "0.00", "1.00", "1", "2"]


def test_no_cuts():
    stats = count_cuts([])
    assert stats["all"]["cuts"] == 0
    assert "all" in stats_table(stats)


FOUND = {"start": 0, "end": 2, "type": "N", "source": "machine:x", "confidence": 0.5}
MADE = {"label_source": {"ner": "machine:x"}, "corpus": "b"}
MACHINE_MADE = make_cut("m1", [{**FR, "entities": [FOUND]}], ["asr", "ner"], duration=1800.0, **MADE)


@pytest.fixture
def manifests(tmp_path):
    """Two files: CUTS (no corpus named) and a cut of corpus b, labelled by a machine."""
    paths = [tmp_path / "a.jsonl.gz", tmp_path / "other.jsonl"]
    for path, cuts in zip(paths, (CUTS, [MACHINE_MADE])):
        CutSet.from_cuts(cuts).to_file(path)
    return paths


def test_machine_labels_are_counted_apart():
    ner = count_cuts([*CUTS, MACHINE_MADE])["fr"]["tasks"]["ner"]
    assert ner["labelled"] == {"cuts": 2, "hours": 1.0} and ner["machine"] == {"cuts": 1, "hours": 0.5}


def test_corpora_are_files_or_what_the_cuts_say(manifests):
    stats = count_manifests(manifests)
    assert list(stats["corpora"]) == ["a", "b"]
    together = count_cuts([*CUTS, MACHINE_MADE])
    assert stats["languages"]["fr"] == together["fr"] and list(stats["languages"]) == list(together)
    assert stats["corpora"]["a"] == count_cuts(CUTS)["all"]
    assert stats["languages"]["all"]["speakers"] == 2  # a and b, each once
    shares = [line.split() for line in shares_table(stats["corpora"]).split("\n")]
    assert shares[0] == ["gives", "to", "asr", "scd", "endp", "ner", "lid", "punct"]
    assert shares[2] == ["b", "0.50", "h", "23", "%", "-", "-", "0.50", "h", "50", "%", "-", "-"]


def test_the_language_whose_code_is_all_is_not_the_totals():
    allar = make_cut("l1", [{"text": "oui", "speaker": "x", "language": "all"}], ["asr", "lid"], duration=3600.0)
    found = count_cuts([*CUTS, allar])
    assert found["all"]["cuts"] == len(CUTS) + 1 and found["all (language)"]["cuts"] == 1
    assert list(found) == ["all", *sorted(set(found) - {"all"})]


def test_what_is_not_valid_is_not_counted(manifests):
    broken = make_cut("x", [{"text": "[SCD]"}])
    CutSet.from_cuts([*CUTS, broken]).to_file(manifests[1])
    with pytest.raises(UserError, match=r"other\.jsonl, line 5: cut x: supervision 0"):
        count_manifests(manifests)
    manifests[1].write_text("{}\n")
    with pytest.raises(UserError, match=r"line 1: not a lhotse cut"):
        count_manifests(manifests)


def test_plot(manifests, tmp_path):
    pytest.importorskip("matplotlib")
    plot_stats(count_manifests(manifests), tmp_path / "hours.png")
    assert (tmp_path / "hours.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"hours\.txt: a plot is named \.png"):
        plot_stats({}, tmp_path / "hours.txt")


AMELIE = {"text": "bonjour amélie", "entities": [{"start": 8, "end": 14, "type": "PER"}]}
TURNS = [
    {**AMELIE, "speaker": "a", "language": "fr", "endpoint": True},
    {"text": "oui", "speaker": "b", "language": "fr", "endpoint": False, "entities": []},
]


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    plain = [{"text": "oui", "language": "fr"}, {"text": "non"}]
    cuts = [
        make_cut("all", TURNS, ["asr", "scd", "endp", "ner", "lid"]),
        make_cut("plain", plain, ["asr"]),
        make_cut("unlisted", TURNS[:1], ["asr"]),
        make_cut("wrong", [{"text": "[SCD]"}], ["asr"]),
    ]
    CutSet.from_cuts(cuts).to_file(path)
    return path


def test_a_cut_with_tokens_turns_and_times(manifest):
    code, said, _ = run("show", "all", "--cuts", manifest)
    lines = said.splitlines()
    assert code == 0 and lines[0] == "cut all: 3.00 s, labelled for asr, scd, endp, ner, lid"
    assert "[FR] bonjour [NE] amélie [/NE] [ENDP] [SCD] oui" in lines
    assert lines[-1].startswith("not labelled for punct: ") and not lines[-2]
    assert [line.split() for line in lines[-4:-2]] == [
        ["0.00", "1.00", "a", "fr", "yes", "amélie", "(PER)", "bonjour", "amélie"],
        ["1.50", "2.50", "b", "fr", "no", "none", "oui"],
    ]


def test_only_the_tokens_of_the_tasks_that_are_asked_for(manifest):
    code, said, _ = run("show", "all", "--cuts", manifest, "--tasks", "ner")
    assert code == 0 and "bonjour [NE] amélie [/NE] oui" in said.splitlines() and "[FR]" not in said


def test_what_is_missing_and_which_field_it_needs(manifest):
    _, said, _ = run("show", "plain", "--cuts", manifest)
    assert [line for line in said.splitlines() if line.startswith("not labelled")] == [
        "not labelled for scd: supervision 0, field 'speaker': expected a name",
        "not labelled for endp: supervision 0, field 'custom.endpoint': expected true or false",
        "not labelled for ner: supervision 0, field 'custom.entities': expected a list (empty if no entity is spoken)",
        "not labelled for lid: supervision 1, field 'language': expected a code such as 'fr'",
        "not labelled for punct: supervision 0, field 'custom.written': expected a text",
    ]
    _, said, _ = run("show", "plain", "--cuts", manifest, "--tasks", "asr, scd")
    assert said.count("not labelled") == 1
    # The field is there, but the cut does not say that it was labelled.
    _, said, _ = run("show", "unlisted", "--cuts", manifest, "--tasks", "lid")
    assert "not labelled for lid: the field is there; 'custom.tasks' does not list 'lid'" in said
    assert "[FR]" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none",), "no cut 'none' among 4"),
        (("wrong",), "cut wrong: supervision 0, field 'text': brackets are for task tokens only"),
        (("all", "--tasks", "asr,sing"), "unknown task 'sing'"),
        (("all", "--tasks", ""), "--tasks: names no task"),
    ],
)
def test_errors_are_one_line(manifest, arguments, message):
    code, said, err = run("show", *arguments, "--cuts", manifest)
    assert code == 2 and said == "" and message in err and err.count("\n") == 1
