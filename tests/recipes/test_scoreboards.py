"""recipes/scoreboards: the arithmetic beside the public scorers, and each board's command on a miniature."""

import importlib
import json
import os
import sys
from collections import Counter
from pathlib import Path

import kaldialign
import pytest
from command_lines import run, run_ok
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_cuts import make_cut
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from scripts import ROOT, load_script

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.evaluation.scoring import scored_example, tasks_of_hypotheses


def needed(name):
    """A package of the extras scoreboards and dev; CI has them all, so that nothing is left out there unseen."""
    if os.environ.get("CI"):
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name}: pip install '.[scoreboards,dev]'")


jiwer, meeteval, whisper = map(needed, ("jiwer", "meeteval", "whisper_normalizer.english"))
needed("pyarrow")
score = load_script(ROOT / "recipes" / "scoreboards" / "score.py", "score")  # brings its neighbours along
word_errors, meetings, slue, eot_bench = map(sys.modules.get, ("word_errors", "meetings", "slue", "eot_bench"))

texts = st.lists(
    st.sampled_from(["a", "bb", "it's", "colour", "twenty", "two", "won't", "uh", "élan"]), max_size=8
).map(" ".join)


def utterance(ref, hyp, language="en", original=None):
    return word_errors.Utterance(language, tuple(ref.split()), original or ref, tuple(hyp.split()))


class TestWords:
    @settings(max_examples=50)
    @given(st.lists(st.tuples(texts.filter(bool), texts), min_size=1, max_size=5), st.sampled_from(["ours", "whisper"]))
    def test_rates_are_those_of_jiwer(self, pairs, name):
        by = word_errors.normalisers(None)[name]
        found = word_errors.word_scores([utterance(*pair) for pair in pairs], by)
        text = by.text or (lambda words, language: words)
        both = [(text(ref, "en").strip(), text(hyp, "en").strip()) for ref, hyp in pairs]
        refs, hyps = [ref for ref, _ in both if ref], [hyp for ref, hyp in both if ref]
        assert found["utterances"] == len(refs)
        if refs:
            theirs = jiwer.process_words(refs, hyps)
            assert found["errors"] == theirs.substitutions + theirs.deletions + theirs.insertions
            assert found["wer"] == pytest.approx(theirs.wer) and found["cer"] == pytest.approx(jiwer.cer(refs, hyps))
            low, high = found["wer_interval"]
            assert low <= found["wer"] + 1e-6 and found["wer"] <= high + 1e-6

    @given(
        st.lists(st.sampled_from("Mr. it's twenty-two £5 colour uh won't [noise] 1,000 Sept 2nd".split()), max_size=9)
    )
    def test_whisper_package_normalises_as_transformers(self, words):
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

        by, text = word_errors.whisper_normaliser(), " ".join(words)
        spelling = whisper.EnglishSpellingNormalizer().mapping
        assert by.text(text, "en").split() == EnglishTextNormalizer(spelling)(text).split()
        assert by.text(text, "fr").split() == BasicTextNormalizer()(text).split()
        assert by.text("日本語", "ja").split() == list("日本語")

    def test_boards_normalise_what_the_corpus_wrote(self):
        both = {"ref": "it is twenty two", "hyp": "it's 22", "original": "It's 22."}
        scores = {
            name: word_errors.word_scores([utterance(**both)], by) for name, by in word_errors.normalisers(None).items()
        }
        assert scores["ours"]["errors"] == 4 and scores["ours"]["words"] == 4
        assert scores["whisper"]["errors"] == 0 and scores["whisper"]["words"] == 3  # it is 22

    def test_a_reference_of_fillers_does_not_count(self):
        scores = word_errors.word_scores(
            [utterance("uh um", "no"), utterance("yes", "yes")], word_errors.whisper_normaliser()
        )
        assert scores["utterances"] == 1 and scores["wer"] == 0

    def test_the_boards_own_code_is_run_from_its_checkout(self, tmp_path):
        folder = tmp_path / "normalizer"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "data_utils.py").write_text(
            "normalizer = lambda text: text.lower().replace('mr', 'mister')\n"
            "ml_normalizer = lambda text, lang: f'{lang} {text}'\n"
        )
        (folder / "eval_utils.py").write_text(
            "def normalize_compound_pairs(refs, preds):\n"
            "    return [r + ' x' for r in refs], [p + ' y' for p in preds]\n"
        )
        try:
            by = word_errors.open_asr_normaliser(tmp_path)
            english = word_errors.word_scores([utterance("Mr whitepaper", "mister white paper")], by)
            french = word_errors.texts_of([utterance("oui", "non", "fr")], by)
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == "normalizer"]:
                del sys.modules[name]
        assert english["errors"] == 0 and english["words"] == 2
        assert french == [(["fr", "oui", "x"], ["fr", "non", "y"])]
        assert str(tmp_path) not in sys.path

    def test_merged_compounds_are_kaldialigns(self):
        by = word_errors.Normaliser("x", lambda text, language: text, merges=True)
        pairs = [("a white paper on tea", "a whitepaper of t"), ("note book", "notebook notes")]
        found = word_errors.word_scores([utterance(*pair) for pair in pairs], by)
        theirs = kaldialign.batch_error_rate(*zip(*((r.split(), h.split()) for r, h in pairs)), merge_compounds=True)
        assert found["errors"] == theirs["total"] == 3 and found["wer"] == theirs["err_rate"]
        assert [found[key] for key in ("ins", "del", "sub")] == [theirs[key] / 7 for key in ("ins", "del", "sub")]

    def test_a_folder_that_is_no_checkout(self, tmp_path, monkeypatch):
        with pytest.raises(UserError, match="open_asr_leaderboard"):
            word_errors.open_asr_normaliser(tmp_path)
        monkeypatch.setattr(kaldialign, "edit_distance", lambda ref, hyp, sclite_mode=False: None)
        with pytest.raises(UserError, match=r"kaldialign 0\.12"):
            word_errors.open_asr_normaliser(tmp_path)


def meeting_cut(cut_id, start, turns, meeting="M1", channel=0):
    """A window of a meeting; a turn: (speaker, start, text)."""
    supervisions = [
        SupervisionSegment(f"{cut_id}-{i}", meeting, at, 1.0, channel, text=text, speaker=speaker, language="en")
        for i, (speaker, at, text) in enumerate(turns)
    ]
    recording = Recording(meeting, [], 16000, 16000 * 60, 60.0, channel_ids=[0, 1])
    tasks = ["asr", "scd"] if len({turn[0] for turn in turns}) > 1 else ["asr"]
    return MonoCut(cut_id, start, 10.0, channel, supervisions, recording=recording, custom={"tasks": tasks})


def hypothesis(cut_id, turns, tasks=("asr", "scd")):
    """A line of hyps.jsonl; a turn: (start, text) or (start, text, speaker)."""
    text = " [SCD] ".join(turn[1] for turn in turns)
    lines = [{"text": turn[1], "start": turn[0], "end": turn[0] + 1.0} for turn in turns]
    for line, turn in zip(lines, turns):
        line.update({"speaker": turn[2]} if len(turn) > 2 else {})
    return {"id": cut_id, "text": text, "tasks": list(tasks), "turns": lines}


def as_is(words, language):
    assert language == "en"
    return words


class TestMeetings:
    CUTS = (
        meeting_cut("a", 0.0, [("A", 0.0, "a b"), ("B", 2.0, "c d")]),
        meeting_cut("b", 20.0, [("B", 0.5, "e f"), ("A", 3.0, "g")]),
    )

    def segments(self, hyps, cuts=CUTS):
        by_id = {hyp["id"]: hyp for hyp in hyps}
        tasks = tasks_of_hypotheses([(cut, by_id[cut.id]) for cut in cuts])
        return meetings.hypothesis_segments(cuts, by_id, tasks, as_is)

    def test_turns_have_the_times_of_the_recording(self):
        found = meetings.reference_segments(self.CUTS, lambda words, language: words.upper())
        assert [(s["session_id"], s["speaker"], s["start_time"], s["end_time"], s["words"]) for s in found] == [
            ("M1", "A", 0.0, 1.0, "A B"),
            ("M1", "B", 2.0, 3.0, "C D"),
            ("M1", "B", 20.5, 21.5, "E F"),
            ("M1", "A", 23.0, 24.0, "G"),
        ]

    def test_turns_without_speakers_are_clustered_at_best(self):
        """A change is missing: "a b c d" as one turn costs one speaker two words and the other two."""
        hyps = [hypothesis("a", [(0.0, "a b c d")]), hypothesis("b", [(0.5, "e f"), (3.0, "g")])]
        hypothesised = self.segments(hyps)
        assert not meetings.speakers_known(hypothesised)
        scores = meetings.speaker_scores(meetings.reference_segments(self.CUTS, as_is), hypothesised)
        assert set(scores) == {"di_cpwer", "orc_wer"}
        assert scores["di_cpwer"]["errors"] == 4 and scores["di_cpwer"]["words"] == 7
        assert scores["orc_wer"]["errors"] == 0  # all words are there, in order

    def test_cpwer_where_the_hypotheses_name_speakers(self):
        """meeteval's own arithmetic on the same words, the assignment of names found by it."""
        hyps = [
            hypothesis("a", [(0.0, "a x", "one"), (2.0, "c d", "two")]),
            hypothesis("b", [(0.5, "e f", "one"), (3.0, "g", "two")]),  # the names are swapped here
        ]
        scores = meetings.speaker_scores(meetings.reference_segments(self.CUTS, as_is), self.segments(hyps))
        theirs = meeteval.wer.cp_word_error_rate({"A": "a b g", "B": "c d e f"}, {"one": "a x e f", "two": "c d g"})
        assert scores["cpwer"]["errors"] == theirs.errors == 4
        assert scores["cpwer"]["wer"] == theirs.error_rate and scores["di_cpwer"]["errors"] == 1
        assert scores["cpwer"]["missed_speaker"] == scores["cpwer"]["falarm_speaker"] == 0

    def test_a_channel_for_each_speaker_is_the_speaker(self):
        cuts = (meeting_cut("a", 0.0, [("A", 0.0, "a b")]), meeting_cut("b", 1.0, [("B", 0.0, "c")], channel=1))
        hyps = [hypothesis("a", [(0.0, "a b")], ["asr"]), hypothesis("b", [(0.0, "d")], ["asr"])]
        segments = self.segments(hyps, cuts)
        assert [s["speaker"] for s in segments] == ["channel 0", "channel 1"]
        assert meetings.speaker_scores(meetings.reference_segments(cuts, as_is), segments)["cpwer"]["errors"] == 1

    def test_a_recording_in_which_nothing_was_heard_counts(self):
        cuts = (*self.CUTS, meeting_cut("c", 0.0, [("C", 0.0, "h i j")], meeting="M2"))
        hyps = [hypothesis("a", [(0.0, "a b")]), hypothesis("b", []), {"id": "c", "text": "", "tasks": ["asr"]}]
        scores = meetings.speaker_scores(meetings.reference_segments(cuts, as_is), self.segments(hyps, cuts))
        for rates in scores.values():
            assert rates["recordings"] == 2 and rates["words"] == 10 and rates["errors"] == 8

    def test_a_turn_without_a_speaker(self):
        with pytest.raises(UserError, match="has no speaker"):
            meetings.reference_segments([meeting_cut("a", 0.0, [(None, 0.0, "a")])], as_is)


def slue_f1(pairs):
    """F1 by the toolkit's definition, written anew: equal pairs are numbered, and sets are compared by type."""

    def numbered(side):
        seen = Counter()
        found = set()
        for item in side:
            seen[item] += 1
            found.add((*item, seen[item]))
        return found

    right = written = there = 0
    for ref, hyp in pairs:
        ref, hyp = numbered(ref), numbered(hyp)
        right, written, there = right + len(ref & hyp), written + len(hyp), there + len(ref)
    precision, recall = right / max(written, 1), right / max(there, 1)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


phrases = st.lists(
    st.tuples(st.sampled_from(["eu", "two", "europe 's"]), st.sampled_from(["PLACE", "ORG", "QUANT"])), max_size=5
)


class TestEntities:
    @given(st.lists(st.tuples(phrases, phrases), max_size=5))
    def test_f1_is_the_toolkits(self, pairs):
        found = slue.entity_scores(pairs)
        assert found["f1"]["f1"] == pytest.approx(slue_f1(pairs))
        bare = [([("phrase", kind) for _, kind in ref], [("phrase", kind) for _, kind in hyp]) for ref, hyp in pairs]
        assert found["label_f1"]["f1"] == pytest.approx(slue_f1(bare))
        kinds = {kind for both in pairs for side in both for _, kind in side}
        by_kind = [
            slue_f1([tuple([p for p in side if p[1] == kind] for side in both) for both in pairs]) for kind in kinds
        ]
        assert found["f1"]["macro_f1"] == pytest.approx(sum(by_kind) / max(len(kinds), 1))
        assert set(found["f1"]["types"]) == kinds

    def test_a_worked_example_has_the_numbers_of_the_toolkit(self):
        """Numbers printed by slue_toolkit.eval.eval_utils_ner.get_ner_scores at commit ed23039 for these lists."""
        pairs = [
            ([("eu", "PLACE"), ("today", "WHEN"), ("eu", "PLACE")], [("eu", "PLACE"), ("eu", "PLACE"), ("eu", "ORG")]),
            ([("two", "QUANT")], [("too", "QUANT"), ("parliament", "ORG")]),
            ([], [("monday", "WHEN")]),
        ]
        found = slue.entity_scores(pairs)
        by_type = {kind: prf["f1"] for kind, prf in found["f1"]["types"].items()}
        assert by_type == {"ORG": 0.0, "PLACE": 1.0, "QUANT": 0.0, "WHEN": 0.0}
        assert (found["f1"]["f1"], found["f1"]["macro_f1"]) == (0.4, 0.25)
        assert (found["label_f1"]["f1"], found["label_f1"]["macro_f1"]) == (0.6, 0.5)

    def examples(self, hyp_text, kinds=("GPE", "FAC", "DATE")):
        spans = [(0, 6, kinds[0]), (7, 12, kinds[1]), (13, 19, kinds[2])]
        entities = [{"start": a, "end": b, "type": kind} for a, b, kind in spans]
        turn = {"text": "france tower monday", "language": "en", "entities": entities}
        cut = make_cut("a", [turn], ["asr", "ner"])
        hyp = {"id": "a", "text": hyp_text, "tasks": ["asr", "ner"]}
        return [scored_example(cut, hyp, tasks_of_hypotheses([(cut, hyp)]))]

    def test_types_are_put_together_as_on_the_board(self):
        examples = self.examples("[NE:LOC] france [/NE] tower [NE:TIME] monday [/NE]")
        assert slue.entities_of(examples) == [([("france", "PLACE"), ("monday", "WHEN")],) * 2]
        assert slue.entity_scores(slue.entities_of(examples))["f1"]["f1"] == 1
        assert slue.entity_scores(slue.entities_of(examples, combined=False))["f1"]["f1"] == 0
        table = slue.entity_table(slue.entity_scores(slue.entities_of(examples)), True)
        assert "PLACE" in table and "100.0" in table

    def test_a_possessive_at_the_end_does_not_count(self):
        entities = [{"start": 0, "end": 8, "type": "GPE"}]
        cut = make_cut("a", [{"text": "europe's borders", "language": "en", "entities": entities}], ["asr", "ner"])
        for heard in ("europe", "europe's"):
            hyp = {"id": "a", "text": f"[NE:GPE] {heard} [/NE] borders", "tasks": ["asr", "ner"]}
            [(ref, hyp)] = slue.entities_of([scored_example(cut, hyp, tasks_of_hypotheses([(cut, hyp)]))])
            assert ref == hyp == [("europe", "PLACE")]

    def test_unknown_types(self):
        with pytest.raises(UserError, match="cut a: entity type NAME"):
            slue.entities_of(self.examples("france", ["NAME", "FAC", "DATE"]))
        [(_, written)] = slue.entities_of(self.examples("[NE:NAME] france [/NE]"))
        assert written == [("france", "NAME")]  # wrong, not an error of the user

    def test_a_model_without_types_gets_no_slue_f1(self):
        scores = slue.entity_scores(slue.entities_of(self.examples("[NE] france [/NE] [NE] tower [/NE]")))
        assert set(scores) == {"untyped_f1"} and scores["untyped_f1"]["tp"] == 1
        assert "not SLUE's" in slue.entity_table(scores, True)


def silence(row, label, *told, length=None):
    """A silence with (seconds, score) pairs, `length` seconds long."""
    times, scores = zip(*(*told, *([(length, told[-1][1])] if length else [])))
    return eot_bench.Silence(row, 0, label, times, scores)


class TestEotBench:
    """Numbers are those that eot-bench's own tests expect of these scores (tests/test_eot_harness_metrics.py)."""

    def at(self, policies, *setting):
        [row] = [i for i, found in enumerate(policies.settings.tolist()) if found == pytest.approx(list(setting))]
        return policies.cutoffs[row], policies.latencies[row]

    def test_a_policy_fires_at_the_first_score_above_the_threshold(self):
        silences = [
            silence("a", "hold", (0.0, 0.0), (0.2, 0.9)),
            silence("b", "hold", (0.0, 0.0), (0.3, 0.8), (1.0, 0.8)),
            silence("c", "eot", (0.0, 0.0), (0.4, 0.95), (1.0, 0.95)),
        ]
        policies = eot_bench.sweep(silences, None, [0.7], [0.5], [1.0])
        assert self.at(policies, 0.7, 0.5, 1.0) == (0.5, 0.5)

    def test_the_score_of_one_time(self):
        holds = [
            silence(str(i), "hold", (0.0, 0.0), (0.5, 0.1 if i else 0.6), (1.0, 0.1 if i else 0.6)) for i in range(10)
        ]
        ends = [
            silence("fast", "eot", (0.0, 0.0), (0.5, 0.7), (1.0, 0.7)),
            silence("slow", "eot", (0.0, 0.0), (0.5, 0.4), (1.0, 0.8)),
        ]
        policies = eot_bench.sweep([*holds, *ends], 0.5, eot_bench.THRESHOLDS, [0.5, 1.5], [0.5, 1.5])
        assert self.at(policies, 0.7, 0.5, 1.5) == (0.0, 1.5)
        assert self.at(policies, 0.6, 0.5, 1.5) == (0.0, 1.0)
        within = {budget: policies.least("latencies", budget) for budget in (0.02, 0.05, 0.1)}
        assert [point["mean_latency"] for point in within.values()] == [1.0, 1.0, 0.5]
        assert within[0.02]["false_cutoffs"] == 0 and within[0.02]["action_delay"] == 0.5
        alone = eot_bench.silence_alone([*holds, *ends])
        assert alone.cutoffs[alone.latencies.tolist().index(0.5)] == 1.0

    def test_the_score_may_have_fallen_before_the_delay(self):
        falling = [(0.0, 0.0), (0.2, 0.8), (0.5, 0.1), (1.0, 0.1)]
        policies = eot_bench.sweep(
            [silence("a", "hold", *falling), silence("b", "eot", *falling)], 0.2, [0.7], [0.5], [1.5]
        )
        assert self.at(policies, 0.7, 0.5, 1.5) == (1.0, 0.5)

    @given(
        st.lists(
            st.tuples(st.booleans(), st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.7]), min_size=3, max_size=12)),
            min_size=2,
        )
    )
    def test_policies_one_by_one(self, told):
        """The sweep beside the definition in words, for each policy and each silence by itself."""
        silences = [
            eot_bench.Silence(
                str(n), 0, "eot" if is_end else "hold", tuple(0.1 * i for i in range(len(scores))), tuple(scores)
            )
            for n, (is_end, scores) in enumerate(told)
        ]
        if len({s.label for s in silences}) < 2:
            return
        policies = eot_bench.sweep(silences, None, [0.0, 0.3, 0.5], [0.2, 0.5], [0.4, 1.0])
        assert len(policies.settings) == 9  # a timeout of 0.4 s is before a delay of 0.5 s
        for (threshold, delay, timeout), cutoffs, latency in zip(
            policies.settings, policies.cutoffs, policies.latencies
        ):
            fires, cut, waited = [], [], []
            for s in silences:
                crossing = next((t for t, score in zip(s.times, s.scores) if score > threshold), None)
                fires.append(timeout if crossing is None else min(timeout, max(delay, crossing)))
                (waited if s.label == "eot" else cut).append(
                    fires[-1] if s.label == "eot" else s.times[-1] > fires[-1] + 1e-9
                )
            assert cutoffs == pytest.approx(sum(cut) / len(cut)) and latency == pytest.approx(sum(waited) / len(waited))

    def test_what_no_policy_reaches_is_told(self):
        silences = [silence("a", "hold", (0.0, 0.9), length=0.4), silence("b", "eot", (0.0, 0.0), length=2.0)]
        scores = eot_bench.bench_scores(silences)
        assert scores["detector"]["false_cutoffs_at_300_ms"] is None
        assert scores["detector"]["latency_at_5_percent"]["mean_latency"] == 1.0  # the timeout
        assert scores["silence"]["false_cutoffs_at_600_ms"]["false_cutoffs"] == 0
        assert (scores["turns"], scores["pauses"]) == (1, 1)
        assert eot_bench.bench_table(scores, "x").splitlines()[1].split()[:2] == ["x", "-"]

    def test_short_and_long_pauses_do_not_count(self):
        end = silence("b", "eot", (0.0, 0.0), length=0.1)
        for length in (0.19, 5.01):
            with pytest.raises(UserError, match="0 pauses"):
                eot_bench.counted([silence("a", "hold", (0.0, 0.9), length=length), end])
        assert len(eot_bench.counted([silence("a", "hold", (0.0, 0.9), length=0.2), end])) == 2

    def test_a_stream_is_read_as_the_harness_reads_events(self):
        import torch

        turn = eot_bench.TurnClip("t", torch.zeros(2 * 16000), 1.4, ((0.5, 0.75), (0.9, 0.95)))
        told = ([0.4, 0.64, 0.96, 1.28, 1.6, 1.92], [0.9, 0.2, 0.3, 0.4, 0.5, 0.6])
        pause, end = eot_bench.silences_of([turn], [told])
        assert (pause.label, pause.index, end.label, end.index) == ("hold", 0, "eot", 2)
        assert pause.times == (0.0, 0.1, 0.2, 0.25) and pause.scores == (0.0, 0.0, 0.2, 0.2)
        assert end.times[-1] == 0.6 and end.scores == (0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.6)
        rows = list(eot_bench.rows_of([pause, end], {"t": "en"}))
        assert list(rows[2]) == ["id", "language", *eot_bench.COLUMNS[1:]]
        assert list(rows[2].values()) == ["t", "en", 0, 0.7, 0.2, 0.2, "hold"]

    @pytest.mark.parametrize("ending", ["parquet", "jsonl"])
    def test_predictions_of_others(self, tmp_path, ending):
        silences = [
            silence("a", "hold", (0.0, 0.25), length=0.4),
            silence("b", "eot", (0.0, 0.0), (0.1, 0.5), length=2.0),
        ]
        path = tmp_path / f"predictions.{ending}"
        if ending == "parquet":
            eot_bench.write_predictions(path, silences, {})
        else:
            rows = [*eot_bench.rows_of(silences, {})][::-1]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert eot_bench.read_predictions(path) == silences
        run_ok("eot-bench", "--predictions", path, "--output-dir", tmp_path, group=score.main)
        assert json.loads((tmp_path / "eot-bench.json").read_text())["turns"] == 1

    def test_predictions_that_are_none(self, tmp_path):
        path = tmp_path / "predictions.jsonl"
        path.write_text('{"id": "a", "span_index": 0}\n')
        with pytest.raises(UserError, match="prediction 1: expected id"):
            eot_bench.read_predictions(path)
        row = {"id": "a", "span_index": 0, "timestamp": 0.0, "silence_dur": 0.0, "p_eot": 0.1, "label": "hold"}
        path.write_text("".join(json.dumps({**row, "label": label}) + "\n" for label in ("hold", "eot")))
        with pytest.raises(UserError, match="labelled both"):
            eot_bench.read_predictions(path)


def board(tmp_path, name, cuts, hyps, *more):
    """The board's command on cuts and hypotheses -> result of the command and the JSON, or None."""
    cut_file, hyp_file = tmp_path / "cuts.jsonl", tmp_path / "hyps.jsonl"
    CutSet.from_cuts(cuts).to_file(cut_file)
    hyp_file.write_text("".join(json.dumps(hyp) + "\n" for hyp in hyps))
    done = run(name, "--cuts", cut_file, "--hyps", hyp_file, "--output-dir", tmp_path / "out", *more, group=score.main)
    written = tmp_path / "out" / f"{name}.json"
    return done, json.loads(written.read_text()) if written.exists() else None


class TestCommands:
    def test_ami(self, tmp_path):
        hyps = [
            hypothesis("a", [(0.0, "a b"), (2.0, "c x")]),
            {**hypothesis("b", [(0.5, "e f g")]), "tokens": ["e"], "times": [0.5], "words": []},
        ]
        for hyp in hyps:
            hyp.pop("tokens", None), hyp.pop("times", None), hyp.pop("words", None)
        done, found = board(tmp_path, "ami", TestMeetings.CUTS, hyps)
        assert done.exit_code == 0, done.stderr
        assert found["cuts"] == 2 and found["words"] == 7 and found["turns"] == 4
        assert (
            found["wer"]["ours"]["errors"] == 1 and found["scd"]["text"]["tp"] == 1 and found["scd"]["text"]["fn"] == 1
        )
        assert found["label_sources"] == {"asr": {"people": 2}, "scd": {"people": 2}}
        assert found["speakers"]["ours"]["orc_wer"]["errors"] == 1
        for words in (
            "AMI: 2 cuts",
            "4 as plain words",
            "scd by people (2 cuts)",
            "Whisper's normaliser",
            "scd text",
            "DI-cpWER",
        ):
            assert words in done.stdout
        assert "cpWER: not counted" in done.stdout

    def test_slue(self, tmp_path):
        entities = [{"start": 0, "end": 6, "type": "GPE", "source": "machine:x", "confidence": 0.5}]
        turn = {"text": "france won", "language": "en", "speaker": "s", "entities": entities}
        turn["custom"] = {"original_text": "France won!"}
        cut = make_cut("a", [turn], ["asr", "ner"], label_source={"ner": "machine:x"})
        hyp = {"id": "a", "text": "[NE:GPE] france [/NE] one", "tasks": None}
        done, found = board(tmp_path, "slue", [cut], [hyp])
        assert done.exit_code == 0, done.stderr
        assert found["ner"]["f1"]["f1"] == 1 and found["labels"] == "combined" and found["wer"]["ours"]["wer"] == 0.5
        assert "1 turns as the corpus writes them" in done.stdout and "ner by machine:x (1 cuts)" in done.stdout
        done, _ = board(
            tmp_path, "slue", [make_cut("a", [{"text": "a", "language": "en"}], ["asr"])], [{"id": "a", "text": "a"}]
        )
        assert done.exit_code == 2 and "1 of 1 cuts are not labelled for ner" in done.stderr

    @pytest.mark.parametrize("name", ["fleurs", "commonvoice", "mls"])
    def test_languages(self, tmp_path, name):
        said = [("a", "fr", "oui merci", "fr", "oui"), ("b", "nl", "ja", "fr", "ja"), ("c", "fr", "non", "fr", "non")]
        cuts = [make_cut(i, [{"text": text, "language": code}], ["asr", "lid"]) for i, code, text, _, _ in said]
        hyps = [
            {"id": i, "text": f"[{heard.upper()}] {text}", "tasks": ["asr", "lid"], "language": heard}
            for i, _, _, heard, text in said
        ]
        cuts.append(make_cut("d", [{"text": "hm"}], ["asr"]))  # of no language: in none of the mean
        hyps.append({"id": "d", "text": "hm", "tasks": ["asr"]})
        done, found = board(tmp_path, name, cuts, hyps)
        assert done.exit_code == 0, done.stderr
        by = found["languages"]
        assert by["fr"]["ours"]["wer"] == pytest.approx(1 / 3) and by["nl"]["ours"]["wer"] == 0
        assert by["fr"]["lid"] == 1 and by["nl"]["lid"] == 0
        assert by["mean"]["ours"]["wer"] == pytest.approx(1 / 6) and by["all"]["ours"]["wer"] == 0.2
        assert by["-"]["ours"]["wer"] == 0 and by["-"]["lid"] is None
        assert by["mean"]["lid"] == 0.5 and by["all"]["lid"] == pytest.approx(2 / 3)
        assert "mean of 2" in done.stdout

    @pytest.mark.slow
    def test_decoding_first(self, finished_run, tiny_corpus, tmp_path):
        """A model of ten steps; options that score.py does not know go to decode.py."""
        cuts = tiny_corpus / "cuts_test.jsonl.gz"
        options = ["--cuts", cuts, "--model", finished_run, "--output-dir", tmp_path]
        options += ["--blank-penalty", 4, "--no-report"]
        done = run_ok("ami", *options, "--method", "greedy", group=score.main)
        found, scores = (json.loads((tmp_path / name).read_text()) for name in ("ami.json", "scores.json"))
        assert found["wer"]["ours"]["wer"] == scores["wer"]["all"]["wer"] and found["scd"] == scores["scd"]
        assert scores["options"]["method"] == "greedy" and found["model"] == str(finished_run)
        done = run("ami", *options, "--no-such-option", group=score.main)
        assert done.exit_code == 2 and "No such option" in done.stderr

    @pytest.mark.slow
    def test_a_stream_over_the_data_of_eot_bench(self, finished_run, tiny_corpus, tmp_path):
        import pyarrow.parquet

        rows = []
        for cut in CutSet.from_file(tiny_corpus / "cuts_test.jsonl.gz"):
            source = cut.recording.sources[0].source
            spans = [{"start": 0.5, "end": 0.8}, {"start": cut.duration - 0.4, "end": cut.duration}]
            audio = {"bytes": Path(source).read_bytes(), "path": None}
            rows.append({"id": cut.id, "language": "en", "audio": audio, "silence_spans": spans, "messages": []})
        data = tmp_path / "data"
        data.mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data / "validation-0.parquet")
        options = ["--data", data, "--model", finished_run, "--output-dir", tmp_path / "out", "--chunk-ms", 320]
        done = run_ok("eot-bench", *options, group=score.main)
        found = json.loads((tmp_path / "out" / "eot-bench.json").read_text())
        assert (found["turns"], found["pauses"], found["chunk_ms"]) == (4, 4, 320)
        assert "eot-bench: 4 ends of turns, 4 pauses" in done.stdout
        told = eot_bench.read_predictions(tmp_path / "out" / "predictions.parquet")
        assert [silence.label for silence in told] == ["hold", "eot"] * 4
        assert eot_bench.bench_scores(told)["detector"] == found["detector"]
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([{**rows[0], "language": "de", "id": "x"}]), data / "b.parquet"
        )
        done = run("eot-bench", *options, group=score.main)
        assert done.exit_code == 2 and "turns in de, en" in done.stderr

    def test_what_is_missing_or_too_much(self, tmp_path):
        cuts, hyps = TestMeetings.CUTS, [hypothesis("a", [(0.0, "a b")])]
        done, _ = board(tmp_path, "ami", cuts, hyps)
        assert done.exit_code == 2 and "cuts without a hypothesis: b" in done.stderr
        done, _ = board(tmp_path, "ami", cuts, hyps, "--model", "x")
        assert done.exit_code == 2 and "--model (decode, then score) or --hyps" in done.stderr
        done, _ = board(tmp_path, "ami", cuts, hyps, "--beam", 8)
        assert done.exit_code == 2 and "--beam has no effect" in done.stderr
        done = run("eot-bench", "--output-dir", tmp_path, group=score.main)
        assert done.exit_code == 2 and "expected one of --data" in done.stderr
