import pytest
from importing_cases import run
from labelled_cuts import make_cut
from lhotse import CutSet

TURNS = [
    {
        "text": "bonjour amélie",
        "speaker": "a",
        "language": "fr",
        "endpoint": True,
        "entities": [{"start": 8, "end": 14, "type": "PER"}],
    },
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
    assert [line.split() for line in lines[-2:]] == [
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
    ]
    _, said, _ = run("show", "plain", "--cuts", manifest, "--tasks", "asr,scd")
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
    ],
)
def test_errors_are_one_line(manifest, arguments, message):
    code, said, err = run("show", *arguments, "--cuts", manifest)
    assert code == 2 and said == "" and message in err and err.count("\n") == 1
