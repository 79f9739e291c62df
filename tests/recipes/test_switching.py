"""recipes/toy/switching.py: forms of the task vectors, and that the best of them switches tasks."""

from types import SimpleNamespace

import pytest
from scripts import ROOT, load_script

from tokenverse_pp.base.config_files import check_activation, check_config
from tokenverse_pp.base.errors import UserError


@pytest.fixture(scope="module")
def switching():
    return load_script(ROOT / "recipes" / "toy" / "switching.py", "toy_switching")


def test_rows_are_what_they_say(switching, tmp_path):
    said = {}
    for name, changes in switching.ROWS.items():
        config = check_config(switching.conf(tmp_path, 100, 1, changes))
        check_activation(config)
        v = config.model.vectors
        fill = config.model.spec_augment.fill or "mean"
        said[name] = (v.masked is not False, fill, v.code, v.scale, config.tasks.paired)
    assert said == {
        "masks first, zeros, binary": (False, "zero", "binary", 1.0, False),
        "zeros, binary": (True, "zero", "binary", 1.0, False),
        "binary": (True, "mean", "binary", 1.0, False),
        "centred": (True, "mean", "centred", 1.0, False),
        "vectors x 5": (True, "mean", "binary", 5.0, False),
        "centred, paired": (True, "mean", "centred", 1.0, True),
    }


def test_a_row_is_trained_and_measured(switching):
    row = switching.run("centred, paired", 1, 10)
    assert set(row.on) == set(row.off) == {"endp", "lid"}
    assert row.wer > 0 and all(share >= 0 for share in (*row.on.values(), *row.off.values()))


def test_an_utterance_that_cannot_be_decoded_is_not_left_out(switching, monkeypatch):
    monkeypatch.setattr(switching.Recognizer, "__init__", lambda self, *_: None)
    monkeypatch.setattr(switching.Recognizer, "recognize", lambda self, items: [None for _ in items])
    loaded = SimpleNamespace(tasks=SimpleNamespace(mask=lambda active: [True]))
    with pytest.raises(UserError, match="u0: the encoder gave NaN"):
        switching.decode(loaded, [SimpleNamespace(id="u0", features=None)], ["asr"])


@pytest.mark.slow
def test_a_trained_model_writes_the_tokens_of_active_tasks_only(switching):
    """Nothing is suppressed: the vectors alone tell the model which tasks are active."""
    row = switching.run("centred", 1, 300)
    assert row.wer < 0.3 and row.wer_alone < 0.3, row
    assert row.on["lid"] > 0.9 and row.on["endp"] > 0.7, row
    for task in row.on:
        assert row.off[task] <= 0.05 * row.on[task], (task, row)
