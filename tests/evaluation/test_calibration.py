"""Calibrated confidences: the curve, its fit, the measures, and who is judged right."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelled_cuts import make_cut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.decoding.hypothesis import Calibration, Curve, read_calibration
from tokenverse_pp.evaluation.calibration import (
    brier_score,
    cross_validate,
    expected_calibration_error,
    fit,
    fit_curve,
    judge,
    judge_all,
    measure,
)
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.tasks.result import Transcript

TASKS = build_tasks(["asr", "scd", "endp", "lid"], {"lid": {"languages": ["fr", "nl"]}})


def drawn(curve, count, seed=0):
    """Raw confidences, right as often as the curve says."""
    rng = random.Random(seed)
    raw = [rng.betavariate(3, 1) for _ in range(count)]
    return [(p, rng.random() < curve(p)) for p in raw]


@given(st.floats(0, 1))
def test_without_a_fit_a_confidence_stays(p):
    assert Curve()(p) == pytest.approx(p, abs=1e-5)


@given(st.floats(0.01, 5), st.floats(0.01, 5), st.floats(-5, 5), st.floats(0, 1), st.floats(0, 1))
def test_calibrated_confidences_keep_their_order(a, b, c, p, q):
    curve = Curve(a, b, c)
    low, high = sorted((p, q))
    assert 0 <= curve(low) <= curve(high) <= 1


@pytest.mark.parametrize("truth", [Curve(), Curve(0.5, 1.0, -1.0), Curve(2.0, 0.6, 0.5)])
def test_the_curve_that_made_the_examples_is_found(truth):
    examples = drawn(truth, 6000)
    found = fit_curve(examples)
    for p in (0.2, 0.5, 0.8, 0.95):
        assert found(p) == pytest.approx(truth(p), abs=0.04)


def test_no_other_curve_is_more_likely():
    examples = drawn(Curve(0.7, 0.7, 0.3), 3000, seed=4)

    def loss(curve):
        return -sum(math.log(curve(p) if right else 1 - curve(p)) for p, right in examples)

    best = fit_curve(examples)
    others = [Curve(a, b, c) for a in (0.5, 0.7, 1.0) for b in (0.5, 0.7, 1.0) for c in (0.0, 0.3)]
    assert loss(best) <= min(loss(curve) for curve in others) + 0.5  # 0.5: the prior
    for name in "abc":  # no way down from there
        for step in (-0.05, 0.05):
            values = {key: getattr(best, key) + step * (key == name) for key in "abc"}
            assert loss(Curve(**values)) > loss(best) - 0.1


def test_few_or_one_sided_examples_do_no_harm():
    assert fit_curve([(0.9, True)] * 5) == Curve()
    sure = fit_curve([(0.6, True)] * 50)
    assert 0.8 < sure(0.6) < 1 and math.isfinite(sure.c)
    assert fit_curve([(1.0, False), (0.0, True)] * 20)(1.0) < 1


def test_measures_by_hand():
    examples = [(0.95, True), (0.95, False), (0.15, False), (1.0, True)]
    # Bin 9 holds three of mean 0.9667, two of them right; bin 1 one of 0.15, wrong.
    assert expected_calibration_error(examples) == pytest.approx((abs(2.9 - 2) + 0.15) / 4)
    assert brier_score(examples) == pytest.approx((0.05**2 + 0.95**2 + 0.15**2 + 0) / 4)
    assert expected_calibration_error([]) == brier_score([]) == 0


def test_halves_are_calibrated_by_each_other():
    truth = Curve(0.5, 1.0, -1.0)
    effect = cross_validate([drawn(truth, 10, seed) for seed in range(300)])
    assert effect["before"]["examples"] == effect["after"]["examples"] == 3000
    assert effect["before"]["ece"] > 0.1 > 0.05 > effect["after"]["ece"]
    assert effect["after"]["brier"] < effect["before"]["brier"]
    # What one half says of itself never reaches it: with two utterances, all right and all wrong, it gets worse.
    torn = cross_validate([[(0.5, True)] * 50, [(0.5, False)] * 50])
    assert torn["after"]["brier"] > 0.5 > torn["before"]["brier"]


def hyp(cut_id, words, **more):
    return {"id": cut_id, "words": [{"text": text, "confidence": p} for text, p in words], **more}


CUT = make_cut(
    "dialogue",
    [
        {"text": "oui je vous écoute", "speaker": "a", "language": "fr", "endpoint": True},
        {"text": "bonjour amélie", "speaker": "b", "language": "fr", "endpoint": False},
    ],
    ["asr", "scd", "endp", "lid"],
)
SAID = [("[NL]", 0.1), ("oui", 0.2), ("vous", 0.3), ("écouter", 0.4), ("[ENDP]", 0.5), ("[SCD]", 0.6)]
SAID += [("bonjour", 0.7), ("amélie", 0.8), ("[ENDP]", 0.9)]


def test_what_is_right():
    judged = judge(CUT, hyp(CUT.id, SAID), TASKS)
    assert judged.words == [(0.2, True), (0.3, True), (0.4, False), (0.7, True), (0.8, True)]
    assert judged.tasks == [(0.1, False), (0.5, True), (0.6, True), (0.9, False)]


def test_tasks_that_are_not_labelled_or_were_not_decoded_count_not():
    some = make_cut("some", [{"text": "oui", "language": "fr", "endpoint": True}], ["asr", "lid"])
    words = [("[FR]", 0.9), ("oui", 0.8), ("[ENDP]", 0.7)]
    assert judge(some, hyp(some.id, words), TASKS).tasks == [(0.9, True)]
    assert judge(CUT, hyp(CUT.id, SAID, tasks=["asr", "scd"]), TASKS).tasks == [(0.6, True)]
    # A hypothesis without a list of tasks was decoded with all of them.
    assert judge(CUT, hyp(CUT.id, SAID, tasks=None), TASKS) == judge(CUT, hyp(CUT.id, SAID), TASKS)


def test_raw_confidences_are_taken_where_there_are_any():
    record = hyp(CUT.id, SAID)
    for word in record["words"]:
        word["raw_confidence"], word["confidence"] = word["confidence"], 0.99
    assert judge(CUT, record, TASKS) == judge(CUT, hyp(CUT.id, SAID), TASKS)


def test_hypotheses_without_cut_or_confidences_are_refused():
    with pytest.raises(UserError, match="nobody"):
        judge_all([CUT], [hyp("nobody", SAID)], TASKS)
    with pytest.raises(UserError, match=f"{CUT.id}: expected 'words'"):
        judge_all([CUT], [{"id": CUT.id, "text": "oui"}], TASKS)
    with pytest.raises(UserError, match=f"{CUT.id}: its id occurs twice"):
        judge_all([CUT], [hyp(CUT.id, SAID), hyp(CUT.id, SAID)], TASKS)


def test_calibration_is_kept_in_the_model_folder(tmp_path):
    assert read_calibration(None) is None and read_calibration(tmp_path) is None
    made, effect = fit([judge(CUT, hyp(CUT.id, SAID), TASKS)] * 30)
    made.write(tmp_path / "calibration.json", {"effect": effect})
    assert read_calibration(tmp_path) == made != Calibration()
    assert measure([judge(CUT, hyp(CUT.id, SAID), TASKS)], Calibration())["words"]["before"]["examples"] == 5
    curve, wrong = {"a": 1, "b": 1, "c": 0}, [{"a": math.nan}, {"a": math.inf}, {"a": -1}, {"b": 0}, {"c": math.inf}]
    curves = [json.dumps({"words": {**curve, **changes}, "tasks": curve}) for changes in wrong]
    thresholds = {"chunk_ms": 320, "thresholds": {"300": math.nan}}
    curves.append(json.dumps({"words": curve, "tasks": curve, "endpoints": thresholds}))
    for text in ("{", "[]", '{"words": {"a": 1, "b": 1}}', *curves):
        (tmp_path / "calibration.json").write_text(text)
        with pytest.raises(UserError, match=r"calibration\.json: no calibration"):
            read_calibration(tmp_path)


def test_records_hold_the_calibrated_and_the_raw_confidence():
    tokenizer = train_tokenizer(["oui je vous écoute"] * 2, TASKS, 24)
    ids = tokenizer.encode("[FR] oui")

    def record(calibration):
        tokens = tokenizer.pieces(ids), range(len(ids)), [math.log(0.5)] * len(ids)
        return TASKS.reader.read_tokens(*tokens, 0.04, calibration, -1.0, 1.0, "c").to_record()

    plain = record(None)
    assert [word["confidence"] for word in plain["words"]] == [0.5, 0.5]
    calibration = Calibration(words=Curve(1, 1, 2.0), tasks=Curve(1, 1, -2.0))
    written = record(calibration)
    token, word = written["words"]
    assert Transcript.from_record(written, TASKS).to_record() == written
    assert (token["raw_confidence"], word["raw_confidence"]) == (0.5, 0.5)
    assert token["confidence"] == pytest.approx(1 / (1 + math.exp(2)), abs=1e-6)
    assert word["confidence"] == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-6)
    assert json.loads(json.dumps(word)) == word
