"""Decodings beside each other: what utterances add up to is what `score_hypotheses` says."""

import json
import random

import pytest
from command_lines import run, run_ok
from labelled_cuts import make_cut
from lhotse import CutSet

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.evaluation.comparison import compare_decodings, count_utterances, counts_of, tasks_in_common
from tokenverse_pp.evaluation.scoring import find_prf, score_hypotheses

WORDS = "een twee drie vier vijf zes zeven acht".split()


def made_up(number=40, seed=0):
    """Cuts of two corpora, of which one has no entities."""
    rng = random.Random(seed)
    cuts = []
    for i in range(number):
        turns = []
        for who in "ab":
            text = " ".join(rng.choices(WORDS, k=4))
            entities = [{"start": 0, "end": len(text.split()[0]), "type": "NUM"}] if rng.random() < 0.5 else []
            turns.append({"text": text, "speaker": who, "language": "nl", "endpoint": True, "entities": entities})
        tasks = ["asr", "scd", "endp", "ner", "lid"] if i % 2 else ["asr", "scd", "lid"]
        cuts.append(make_cut(f"c{i}", turns, tasks, corpus="odd" if i % 2 else "even"))
    return cuts


def heard(cuts, errors, seed=1, tasks=("asr", "scd", "endp", "ner", "lid")):
    """Hypotheses with so large a share of wrong words and misplaced tokens."""
    rng = random.Random(seed)
    hyps = []
    for cut in cuts:
        words = ["[NL]" if rng.random() > errors else "[DE]"]
        for i, turn in enumerate(cut.supervisions):
            words += ["[SCD]"] if i and rng.random() > errors else []
            said = [word if rng.random() > errors else "nul" for word in turn.text.split()]
            words += ["[NE]", said[0], "[/NE]", *said[1:]] if rng.random() > errors else said
            words += ["[ENDP]"] if rng.random() > errors else []
        hyps.append({"id": cut.id, "text": " ".join(words), "tasks": list(tasks)})
    return hyps


def test_sums_over_utterances_are_the_scores():
    cuts = made_up()
    hyps = heard(cuts, 0.3)
    counted, scores = count_utterances(cuts, hyps), score_hypotheses(cuts, hyps)
    mean = {m: counts_of([counted], m, list(ratios)).score() for m, ratios in counted.metrics.items()}
    assert mean.pop("wer") == pytest.approx(scores["wer"]["all"]["wer"])
    assert mean.pop("lid accuracy") == pytest.approx(scores["lid"]["accuracy"])
    expected = {}
    for task in ("scd", "endp", "ner"):
        for name, prf in find_prf(task, scores[task]):
            expected.update({name: prf["f1"], f"{name} precision": prf["precision"], f"{name} recall": prf["recall"]})
    assert mean == pytest.approx(expected)  # no score by time either: these hypotheses have none
    assert len(counted.metrics["ner exact"]) == 20 and len(counted.metrics["wer"]) == 40


@pytest.mark.parametrize("text, said", [("", "twee drie"), ("Een.", "")])
def test_a_share_of_nothing_is_what_scores_say(text, said):
    turn = {"text": text.lower().strip("."), "custom": {"written": text}}
    cuts, hyps = [make_cut("c", [turn], ["asr", "punct"])], [{"id": "c", "text": said}]
    scores, counted = score_hypotheses(cuts, hyps), count_utterances(cuts, hyps)
    wer, case = (counts_of([counted], metric, ["c"]).score() for metric in ("wer", "punct case accuracy"))
    assert (wer, case) == (scores["wer"]["all"]["wer"], scores["punct"]["case"]["accuracy"]) == (2 if said else 1, 0)


def test_a_task_that_was_not_decoded_has_no_counts():
    cuts = made_up(4)
    counted = count_utterances(cuts, heard(cuts, 0.0, tasks=("asr", "scd")))
    assert set(counted.metrics) == {"wer", "scd text", "scd text precision", "scd text recall"}
    with pytest.raises(UserError, match="cuts without a hypothesis: c0"):
        count_utterances(cuts, [])


def test_the_better_of_two_is_seen():
    cuts = made_up()
    good, bad = (count_utterances(cuts, heard(cuts, errors)) for errors in (0.05, 0.4))
    found = compare_decodings([good, good], [bad], resamples=500)
    assert found["wer"].interval[1] < 0 < found["ner exact"].interval[0]
    assert found["ner exact"].utterances == 20 and not any(name.endswith("recall") for name in found)
    some = compare_decodings([good], [bad], among=[f"c{i}" for i in range(10)], resamples=500)
    assert some["wer"].utterances == 10 and some["ner exact"].utterances == 5


def entity_f1(cuts, a, b):
    """Exact F1 of entities in two decodings, as `compare` scores them."""
    tasks = tasks_in_common(cuts, [a, b])
    found = compare_decodings(*([count_utterances(cuts, hyps, tasks)] for hyps in (a, b)), resamples=100)["ner exact"]
    return found.a, found.b


def test_entities_of_both_are_scored_alike():
    """With types or without them, and of the same references."""
    turn = {"text": "amélie chante", "entities": [{"start": 0, "end": 6, "type": "PER"}]}
    bare = {"text": "amélie rit", "entities": [{"start": 0, "end": 6}]}
    cuts = [make_cut("typed", [turn], ["asr", "ner"]), make_cut("bare", [bare], ["asr", "ner"])]

    def said(opening):
        words = {"typed": "chante", "bare": "rit"}
        start = f"{opening} amélie [/NE]" if opening else "amélie"
        return [{"id": name, "text": f"{start} {word}"} for name, word in words.items()]

    assert entity_f1(cuts, said("[NE:PER]"), said("[NE:LOC]")) == (1, 0.5)
    assert entity_f1(cuts, said("[NE:LOC]"), said("[NE]")) == (1, 1)  # types do not count, B has none
    assert entity_f1(cuts, said("[NE:PER]"), said("")) == (1, 0)  # no entity: types count
    assert entity_f1(cuts, said("[NE:LOC]"), [said("[NE:PER]")[0], said("")[1]]) == (0.5, pytest.approx(2 / 3))
    mixed = [said("[NE:PER]")[0], said("[NE]")[1]]
    for score in (score_hypotheses, count_utterances):
        with pytest.raises(
            UserError, match=r"with \[NE\] \(cut bare\) and with \[NE:PER\] \(cut typed\): expected types"
        ):
            score(cuts, mixed)
    counted = count_utterances(cuts, said("[NE]"), tasks_in_common(cuts, [said("[NE]"), said("[NE:PER]")]))
    assert counted == count_utterances(cuts, said("[NE]"))


def write(path, hyps):
    path.write_text("".join(json.dumps(hyp) + "\n" for hyp in hyps))
    return path


def test_the_command_compares_files(tmp_path):
    cuts = made_up()
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    a, b = (write(tmp_path / f"{name}.jsonl", heard(cuts, e)) for name, e in (("a", 0.1), ("b", 0.5)))
    output = tmp_path / "c.json"
    words = ["compare", a, b, "--cuts", tmp_path / "cuts.jsonl", "--by-corpus", "--output", output, "--resamples", 300]
    done = run_ok(*words)
    rows = {tuple(line.split("  ")[0].split() + [line.split()[-1]]) for line in done.stdout.splitlines()[1:]}
    assert ("wer", "40") in rows and ("wer", "20") in rows
    found = json.loads(output.read_text())
    assert list(found) == ["all", "even", "odd"] and "ner exact" not in found["even"]
    assert found["all"]["wer"]["difference"] < 0 and found["all"]["wer"]["interval"][1] < 0
    assert not done.stderr
    CutSet.from_cuts(cuts[:4]).to_file(tmp_path / "cuts.jsonl")
    told = [
        f"warning: {x}: 36 of 40 hypotheses belong to no cut of {tmp_path / 'cuts.jsonl'}: left out" for x in (a, b)
    ]
    assert run(*words).stderr.splitlines() == told
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    write(b, heard(cuts, 0.5)[1:])
    refused = run(*words)
    assert refused.exit_code == 2 and "c0" in refused.stderr
    (tmp_path / "cuts.jsonl").write_text("")  # of none of the hypotheses
    refused = run(*words)
    assert refused.exit_code == 2 and "nothing to compare" in refused.stderr


def test_ids_that_come_twice_are_named():
    cuts = made_up(4)
    hyps = heard(cuts, 0.0)
    for more, message in (((cuts[:1], []), "cut ids that occur twice: c0"), (([], hyps[:1]), "with the same id: c0")):
        with pytest.raises(UserError, match=message):
            count_utterances([*cuts, *more[0]], [*hyps, *more[1]])
    counted = count_utterances(cuts[1:], hyps)
    assert len(counted.metrics["wer"]) == 3  # a part of what was decoded
