import json

import pytest
from labelled_cuts import make_cut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.hypotheses import read_hypotheses
from tokenverse_pp.evaluation.scoring import score_hypotheses, score_table
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.tasks.result import Transcript

ALL = ["asr", "scd", "endp", "ner", "lid"]
FULL = make_cut(
    "full",
    [
        {"text": "bonjour amélie", "speaker": "a", "language": "fr", "endpoint": True},
        {"text": "je vous écoute", "speaker": "b", "language": "fr", "endpoint": True, "entities": []},
    ],
    ALL,
    duration=3.0,
    corpus="calls",
)
FULL.supervisions[0].custom["entities"] = [{"start": 8, "end": 14, "type": "PER"}]
PLAIN = make_cut("plain", [{"text": "een twee", "language": "nl"}], ["asr", "lid"], corpus="prompts")


def hyp(cut_id, text, **fields):
    return {"id": cut_id, "text": text, **fields}


PERFECT = hyp(
    "full",
    "[FR] bonjour [NE] amélie [/NE] [ENDP] [SCD] je vous écoute [ENDP]",
    tokens=[
        "[FR]", "▁bon", "jour", "[NE]", "▁amélie", "[/NE]", "[ENDP]", "[SCD]", "▁je", "▁vous", "▁écoute", "[ENDP]",
    ],
    times=[0.0, 0.1, 0.2, 0.4, 0.5, 0.9, 1.1, 1.2, 1.6, 1.9, 2.1, 2.6],
)  # fmt: skip


def test_perfect_hypotheses_score_one():
    scores = score_hypotheses([FULL, PLAIN], [hyp("plain", "[NL] een twee"), PERFECT])
    assert scores["wer"]["all"]["wer"] == 0 and scores["wer"]["all"]["words"] == 7
    assert list(scores["wer"]) == ["all", "fr", "nl"]
    for events in (scores["scd"], scores["endp"]):
        assert events["text"]["f1"] == 1
        assert {collar: prf["f1"] for collar, prf in events["time"].items()} == {"0.25": 1, "0.5": 1}
    assert scores["ner"]["exact"]["f1"] == scores["ner"]["soft"]["f1"] == 1
    assert scores["lid"] == {"accuracy": 1, "confusion": {"fr": {"fr": 1}, "nl": {"nl": 1}}, "utterances": 2}
    assert {corpus: rates["words"] for corpus, rates in scores["wer_by_corpus"].items()} == {"calls": 5, "prompts": 2}
    assert scores["utterances"] == 2 and scores["not_decoded"] == {}
    json.dumps(scores, allow_nan=False)


def test_what_is_wrong_counts_where_it_belongs():
    text = "[NL] bonjour [NE] amélia [/NE] je [SCD] vous écoute [ENDP] [ENDP]"
    scores = score_hypotheses([FULL], [hyp("full", text)])
    assert scores["wer"]["fr"]["sub"] == pytest.approx(1 / 5)
    assert (scores["scd"]["text"]["fp"], scores["scd"]["text"]["fn"]) == (1, 1)
    assert (scores["endp"]["text"]["precision"], scores["endp"]["text"]["recall"]) == (1, 0.5)
    assert (scores["ner"]["exact"]["f1"], scores["ner"]["soft"]["f1"]) == (0, 1)
    assert scores["lid"]["confusion"] == {"fr": {"nl": 1}}
    assert "time" not in scores["scd"]  # a hypothesis without times


def test_each_task_counts_only_over_cuts_labelled_for_it():
    """The plain cut's hypothesis is full of tokens that nobody annotated there: they are not wrong."""
    noisy = hyp("plain", "[NL] [NE] een [/NE] [ENDP] [SCD] twee [ENDP]")
    scores = score_hypotheses([FULL, PLAIN], [PERFECT, noisy])
    assert scores["wer"]["all"]["wer"] == 0
    assert scores["scd"]["text"]["fp"] == scores["endp"]["text"]["fp"] == scores["ner"]["exact"]["fp"] == 0
    by_corpus = {"wer_by_corpus", "wer_by_corpus_and_language"}
    assert set(score_hypotheses([PLAIN], [noisy])) == {"wer", *by_corpus, "lid", "utterances", "not_decoded"}


def test_labelled_empty_is_not_missing():
    """No entity spoken: an entity found is wrong. Nobody annotated: it is not."""
    turn = {"text": "oui", "entities": []}
    found = hyp("c", "[NE] oui [/NE]")
    assert score_hypotheses([make_cut("c", [turn], ["asr", "ner"])], [found])["ner"]["exact"]["fp"] == 1
    assert "ner" not in score_hypotheses([make_cut("c", [turn], ["asr"])], [found])


def test_a_task_that_was_not_decoded_is_not_scored():
    silent = hyp("full", "[FR] bonjour amélie je vous écoute", tasks=["asr", "lid"])
    scores = score_hypotheses([FULL, PLAIN], [silent, hyp("plain", "[NL] een twee", tasks=["asr", "lid"])])
    assert scores["not_decoded"] == {"scd": 1, "endp": 1, "ner": 1}
    assert not {"scd", "endp", "ner"} & set(scores)
    empty = score_hypotheses([FULL, PLAIN], [{**silent, "tasks": ALL}, hyp("plain", "[NL] een twee")])
    assert empty["scd"]["text"]["fn"] == 1 and empty["not_decoded"] == {}


def test_a_cut_without_labels_is_not_scored():
    cut = make_cut("c", [{"text": "ja"}], None)
    assert score_hypotheses([cut], [hyp("c", "nee")]) == {"utterances": 1, "not_decoded": {}}
    assert score_table({"utterances": 1, "not_decoded": {}}) == ""


def test_wer_groups_by_language_even_where_it_is_no_label():
    cut = make_cut("c", [{"text": "ja", "language": "nl"}], ["asr"])
    scores = score_hypotheses([cut], [hyp("c", "nee")])
    assert scores["wer"]["nl"]["wer"] == 1 and "lid" not in scores
    cut.supervisions[0].language = "all"  # Allar: its words count once
    assert score_hypotheses([cut], [hyp("c", "nee")])["wer"]["all"]["words"] == 1


def test_wer_by_corpus_and_language():
    other = make_cut("other", [{"text": "a b", "language": "nl"}], ["asr"])
    silent = make_cut("silent", [{"text": "a b", "language": "nl"}], None)
    hyps = [PERFECT, hyp("plain", "een drie vier"), hyp("other", "a"), hyp("silent", "c")]
    scores = score_hypotheses([FULL, PLAIN, other, silent], hyps, corpora={"other": "prompts", "full": "ignored"})
    assert set(scores["wer_by_corpus"]) == {"calls", "prompts"}
    split = {corpus: set(rates) for corpus, rates in scores["wer_by_corpus_and_language"].items()}
    assert split == {"calls": {"fr"}, "prompts": {"nl"}}
    rates = scores["wer_by_corpus_and_language"]["prompts"]["nl"]
    assert rates == scores["wer_by_corpus"]["prompts"] == scores["wer"]["nl"]
    assert (rates["ins"], rates["del"], rates["sub"], rates["words"]) == (1 / 4, 1 / 4, 1 / 4, 4)


def test_types_count_only_where_hypotheses_have_them():
    assert score_hypotheses([FULL], [hyp("full", "bonjour [NE] amélie [/NE]")])["ner"]["exact"]["f1"] == 1
    assert score_hypotheses([FULL], [hyp("full", "bonjour [NE:PER] amélie [/NE]")])["ner"]["exact"]["f1"] == 1
    bare = make_cut("bare", [{"text": "amélie rit", "entities": [{"start": 0, "end": 6}]}], ["asr", "ner"])
    typed = [hyp("full", "bonjour [NE:PER] amélie [/NE]"), hyp("bare", "[NE:PER] amélie [/NE] rit")]
    for model in (None, build_tasks(["asr", "ner"], {"ner": {"types": ["PER"]}})):
        # A reference without a type is found by its phrase, and missed where nothing is found.
        for said, tp, fn in ((typed, 2, 0), ([typed[0], hyp("bare", "amélie rit")], 1, 1)):
            found = score_hypotheses([FULL, bare], said, model)["ner"]
            assert all((found[kind]["tp"], found[kind]["fn"]) == (tp, fn) for kind in ("exact", "soft", "label"))
    wrong = score_hypotheses([FULL], [hyp("full", "bonjour [NE:NUM] amélie [/NE]")])["ner"]["exact"]
    assert (wrong["fp"], wrong["fn"]) == (1, 1)


def test_time_needs_every_token_to_have_one():
    """Leaving out the hypothesis without times would count its misses and not its finds."""
    other = make_cut("other", [{"text": "a", "speaker": "x"}, {"text": "b", "speaker": "y"}], ["asr", "scd"])
    scores = score_hypotheses([FULL, other], [PERFECT, hyp("other", "a [SCD] b")])
    assert "time" not in scores["scd"] and "time" in scores["endp"]


def test_a_models_own_tasks():
    tasks = build_tasks(["lid"], {"lid": {"languages": ["nl"]}})
    scores = score_hypotheses([FULL], [PERFECT], tasks)
    assert scores["lid"]["confusion"] == {"fr": {"none": 1}}
    assert "scd" not in scores


@pytest.mark.parametrize(
    ("cuts", "hyps", "said"),
    [
        ([FULL, PLAIN], [PERFECT], "cuts without a hypothesis: plain"),
        ([FULL], [PERFECT, hyp("x", "")], "hypotheses of cuts that are not in the reference: x"),
        ([FULL], [PERFECT, PERFECT], "hypotheses with the same id: full"),
        ([FULL, FULL], [PERFECT], "cut ids that occur twice: full"),
        ([FULL], [PERFECT, *(hyp(f"x{i}", "") for i in range(5))], "x0, x1, x2, and 2 more"),
    ],
)
def test_cuts_and_hypotheses_must_be_the_same(cuts, hyps, said):
    with pytest.raises(UserError, match=said):
        score_hypotheses(cuts, hyps)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"text": "a"}', "field 'id'"),
        ('{"id": 3, "text": "a"}', "field 'id': expected the id of a cut, found 3"),
        ('{"id": "a"}', "field 'text'"),
        ('{"id": "a", "text": ["x"]}', "field 'text'"),
        ('{"id": "a", "tokens": "x"}', "field 'tokens'"),
        ('{"id": "a", "tokens": ["x"], "times": [1, 2]}', "field 'times': expected one a token"),
        ('{"id": "a", "tokens": ["x"], "times": [NaN]}', "field 'times': expected a list of seconds"),
        ('{"id": "a", "text": "x", "tasks": "asr"}', "field 'tasks'"),
        ('{"id": "a", "text": "x", "endpoints": [null]}', "field 'endpoints': expected a list of seconds"),
        ('{"id": "a", "text": "x", "turns": ["x"]}', "field 'turns': expected a list of objects"),
        ('{"id": "a", "text": "x", "turns": [{"text": "x", "start": 0}]}', "field 'turns': expected text, start, end"),
        ('{"id": "a", "text": "x", "words": [{"text": "x", "start": 0, "end": 1}]}', "field 'words'"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, said):
    path = tmp_path / "hyps.jsonl"
    path.write_text(f'{{"id": "ok", "text": "a\u2028b"}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_hypotheses(path)
    assert str(caught.value).startswith(f"{path}, line 3: ") and said in str(caught.value)


def test_reading_back(tmp_path):
    path = tmp_path / "hyps.jsonl"
    path.write_text("\n".join(json.dumps(h) for h in (PERFECT, hyp("plain", ""))), encoding="utf-8")
    assert read_hypotheses(path) == [PERFECT, hyp("plain", "")]
    with pytest.raises(UserError, match="cannot read hypotheses: no such file"):
        read_hypotheses(tmp_path / "none.jsonl")
    heard = Transcript.from_record(PERFECT)
    assert heard.text == "bonjour amélie je vous écoute"
    assert [(mark.token, mark.time) for mark in heard.marks][2:5] == [("[/NE]", 0.9), ("[ENDP]", 1.1), ("[SCD]", 1.2)]
    assert set(Transcript.from_record({**PERFECT, "tasks": ["lid"]}).answers.answers) == {"lid"}


def test_table_is_readable():
    texts = {"full": "[NL] bonjour amélie je [SCD] vous écoute", "plain": "een twee"}
    hyps = [hyp(cut_id, text, tasks=["asr", "scd", "ner", "lid"]) for cut_id, text in texts.items()]
    table = score_table(score_hypotheses([FULL, PLAIN], hyps))
    assert max(len(line) for line in table.split("\n")) <= 100
    rows = {tuple(line.split()[:2]): line.split() for line in table.split("\n")}
    assert rows[("scd", "text")][2:] == ["0.0", "0.0", "0.0", "0", "1", "1"]
    assert rows[("fr", "0.0")][-2:] == ["5", "1"]
    assert "accuracy 0.0 % of 2 cuts" in table
    assert "endp: 1 of 2 cuts are labelled for it but were decoded without it" in table


def test_many_languages_do_not_widen_the_table():
    codes = [a + b for a in "abcdef" for b in "uvwxyz"]
    cuts = [make_cut(code, [{"text": "a", "language": code}], ["asr", "lid"]) for code in codes]
    table = score_table(score_hypotheses(cuts, [hyp(code, "[AU] a") for code in codes]))
    assert max(len(line) for line in table.split("\n")) <= 100
    assert "av decoded as au" in table and "au decoded as au" not in table
