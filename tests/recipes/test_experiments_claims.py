"""Verdicts on made-up counts, and causes of made-up errors."""

import dataclasses

import pytest
from experiment_grids import ROOT
from grid.claims import Claim, judge, read_claims
from grid.grid import load_grid
from grid.tables import claims_table, fill
from grid.worst import Utterance, cause, repeated, without_texts, worst

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.metrics.bootstrap import RatioCounts

EXPERIMENTS = ROOT / "recipes" / "human_speech" / "experiments"
HALF = RatioCounts.of([[(i % 2, 1) for i in range(200)]])
MORE = RatioCounts.of([[(int(i % 4 > 0), 1) for i in range(200)]])  # 3 in 4
SAME = RatioCounts.of([[(int(i % 2 == 0), 1) for i in range(200)]])  # a half too, but others


def verdict(relation, a, b=None, metric="ner exact", value=None):
    claim = Claim("x", "says", "a", relation, metric, than=None if b is None else "b", value=value)
    return judge(claim, a, b, resamples=1000)["verdict"]


@pytest.mark.parametrize("metric, more", [("ner exact", "supported"), ("wer", "not supported")])
def test_more_is_better_but_for_word_errors(metric, more):
    less = {"supported": "not supported", "not supported": "supported"}[more]
    assert verdict("better", MORE, HALF, metric) == verdict("not worse", MORE, HALF, metric) == more
    assert verdict("better", HALF, MORE, metric) == verdict("not worse", HALF, MORE, metric) == less


def test_what_cannot_be_told_apart():
    assert verdict("better", HALF, SAME) == "undecided"
    assert verdict("not worse", HALF, SAME) == "supported"
    assert verdict("better", HALF, HALF) == "undecided"
    nothing = RatioCounts.of([[(0, 1) for _ in range(200)]])
    assert verdict("not worse", nothing, nothing) == "undecided"
    assert verdict("not worse", nothing, nothing, "wer") == "supported"
    assert judge(Claim("x", "", "a", "better", "wer", than="b"), HALF, None)["verdict"] == "not run"
    assert judge(Claim("x", "", "a", "better", "wer", than="b"), None, HALF)["verdict"] == "not run"


def test_values_are_reached_with_the_whole_interval():
    reached = {value: verdict("reaches", MORE, value=value) for value in (0.5, 0.75, 0.9)}
    assert reached == {0.5: "supported", 0.75: "undecided", 0.9: "not supported"}
    below = {value: verdict("reaches", MORE, value=value, metric="wer") for value in (0.5, 0.75, 0.9)}
    assert below == {0.5: "not supported", 0.75: "undecided", 0.9: "supported"}


def test_numbers_stand_beside_the_verdict():
    record = judge(Claim("x", "more", "a", "better", "ner exact", than="b"), MORE, HALF)
    assert record["difference"] == pytest.approx(0.25) and record["cuts"] == 200
    assert record["interval"][0] < 0.25 < record["interval"][1]
    row = claims_table({"claims": [record]}, (), ())[1]
    assert row[0] == "more (NER F1; `a` / `b`)" and row[1] == "75.0, 50.0" and row[2].startswith("+25.0 (")
    assert fill("<!-- table: claims -->\n", {"claims": []}).count("Nothing has been run yet.") == 1


def test_the_claims_of_the_recipe_name_runs_of_the_grid(tmp_path):
    claims, grid = read_claims(EXPERIMENTS / "claims.yaml"), load_grid(EXPERIMENTS / "grid.yaml", ROOT)
    assert {name for claim in claims for name in (claim.run, claim.than) if name} <= set(grid.runs)
    assert len({claim.id for claim in claims}) == len(claims)
    for text in ("[{id: a}]", "[{id: a, says: b, run: c, is: nice, metric: wer}]",
                 "[{id: a, says: b, run: c, is: better, metric: wer}]"):  # fmt: skip
        (tmp_path / "claims.yaml").write_text(f"claims: {text}")
        with pytest.raises(UserError, match="claim a: "):
            read_claims(tmp_path / "claims.yaml")


def utterance(ref, hyp, **changes):
    ref, hyp = tuple(ref.split()), tuple(hyp.split())
    plain = Utterance("u", "c", "nl", 2.5, ref, hyp, None, 0.9, (50,) * len(ref))
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize(
    "found, why",
    [
        (utterance("een twee drie", "un deux trois", hyp_language="fr"), "wrong language"),
        (utterance("een twee drie", ""), "nothing written"),
        (utterance("een twee drie vier", "een nee nee nee"), "repetition made up"),
        (utterance("nee nee nee vierentwintig", "nee nee nee zes", hyp_language="nl"), "no rule holds"),
        (utterance("een twee drie vier vijf zes", "een vijf zes"), "run of words left out"),
        (utterance("een twee drie vier", "een twee drie vier en nog"), "no rule holds"),
        (utterance("een twee", "een twee en nog wat"), "words made up"),
        (utterance("een twee", "zes negen", seconds=0.8), "clip under 1 s"),
        (utterance("een twee drie vier", "eentwee drie vier"), "words split or joined"),
        (utterance("eentje twee drie", "eentjes twee dries"), "nearly right in letters"),
        (utterance("een twee drie", "zes acht drie", seen=(0, 2, 9)), "words rare in training"),
        (utterance("a b c d", "x y c d", seen=(0, 9, 9, 9)), "words unseen in training"),
        (utterance("een twee drie vier", "zes acht drie vier", seconds=0.99 + 0.005), "clip under 1 s"),
        (utterance("aa bb cc dd ee", "xx yy cc dd ee", seconds=1.2), "fast speech"),
        (utterance("een twee drie", "zes acht drie", confidence=0.3), "unsure: mean confidence under 0.5"),
    ],
)
def test_causes(found, why):
    assert cause(found) == why


def test_repetitions_and_order():
    assert repeated("a b a b a b".split()) == 3 and repeated(["a"]) == 1 and repeated([]) == 0
    most, half, short = utterance("a b c d", "x y"), utterance("a b c d", "x y c d"), utterance("a", "x y z")
    assert worst([half, short, most], 2) == [most, half]
    assert worst([half, short], 2, min_words=1) == [short, half]
    assert worst([half, utterance("a b c d e f g h i j", "x y z w")], 1, by="errors")[0].errors == 10


def test_failures_are_shown_without_texts():
    right, wrong = utterance("een twee drie", "een twee drie"), utterance("een twee drie", "vier vijf zes")
    found = {"failures": {"pp": without_texts([right] * 30 + [wrong] * 2)}}
    filled = fill("<!-- table: worst pp -->\n<!-- table: causes pp -->\n<!-- table: worst other -->\n", found)
    rows = [line for line in filled.splitlines() if line.startswith("| ")]
    assert len([row for row in rows if row.startswith("| u |")]) == 20 and "100" in rows[2]
    assert "drie" not in filled and "zes" not in filled
    assert rows[-1] == f"| {cause(wrong)} | 2 | 6 |" and filled.count("Nothing has been run yet.") == 1
