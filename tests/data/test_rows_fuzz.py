"""Rows with anything in any field: the commands that work on rows say what is wrong, and never fail otherwise."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labelled_cuts import make_cut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.editing.conversations import write_conversations
from tokenverse_pp.data.editing.entity_finders import Gazetteer
from tokenverse_pp.data.editing.label import GazetteerEntities, LabelChange, label_rows
from tokenverse_pp.data.editing.mix import count_each, mixed_rows
from tokenverse_pp.data.editing.split import KeyRule, Wanted, split_manifest, write_subset
from tokenverse_pp.data.editing.stats import count_manifests, manifest_problems
from tokenverse_pp.data.manifests import read_rows, row_bytes, writing_rows

TURN = {"text": "new york", "speaker": "a", "language": "fr", "endpoint": True}
PLAIN = make_cut("c", [TURN], ["asr", "lid"], corpus="x", label_source={}).to_dict()
PLAIN["recording"] = {"id": "r", "sources": [], "sampling_rate": 16000, "num_samples": 1, "duration": 1.5}
INNER = {key: value for key, value in PLAIN.items() if key != "type"}
MIXED = {"id": "m", "type": "MixedCut", "tracks": [{"cut": INNER, "type": "MonoCut", "offset": 0.0}]}
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.just(10**400) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


def places(value, path=()):
    """The paths of everything in nested lists and dictionaries."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(data, path, value):
    data = copy.deepcopy(data)
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return data


@st.composite
def broken(draw):
    data = draw(st.sampled_from([PLAIN, MIXED]))
    return replaced(data, draw(st.sampled_from([path for path in places(data) if path])), draw(junk))


def label(path, output):
    finder = GazetteerEntities(Gazetteer([("new york", "LOC", 1.0)]), "g")
    for change, by in (
        (LabelChange(add=("scd",), drop=("lid",)), None),
        (LabelChange(language="fr"), None),
        (LabelChange(), finder),
    ):
        with writing_rows(output) as writer:
            for data in label_rows(read_rows(path), change, by):
                writer.write(data)


def mix(path, output):
    count_each([path])
    with writing_rows(output) as writer:
        for row in mixed_rows([path], [1.0], seed=0, prefix=True):
            writer.write(row)


def split(path, output):
    outputs = {"a": output, "b": output.with_name("b.jsonl")}
    split_manifest(path, outputs, {"a": 0.5, "b": 0.5}, KeyRule(("speaker", "text", "recording", "corpus")), 0)


def subset(path, output):
    write_subset(path, output, Wanted(languages=frozenset(["fr"]), corpora=frozenset(["x"]), keep_labels={"lid": 0.5}))


def stats(path, output):
    count_manifests([path])


def conversations(path, output):
    write_conversations(path, output, say=lambda line: None)


@pytest.mark.parametrize("command", [label, mix, split, subset, stats, conversations])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(broken())
def test_rows_of_any_kind(tmp_path, command, data):
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    output.unlink(missing_ok=True)
    path.write_bytes(row_bytes(json.loads(json.dumps(data))))
    try:
        command(path, output)
    except UserError as error:
        assert any(said in str(error) for said in (str(path), "cut ", "--by", "supervision "))
        assert command is label or not output.exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(broken())
def test_problems_of_any_row_are_lines(tmp_path, data):
    path = tmp_path / "in.jsonl"
    path.write_bytes(row_bytes(data))
    assert all(problem.startswith(str(path)) for problem in manifest_problems(path))
