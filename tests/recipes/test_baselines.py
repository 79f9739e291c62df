"""The baselines of human_speech on made-up words, pauses and voices, without their models; its other small scripts."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from labelled_cuts import make_cut
from scripts import ROOT, build_package, load_script

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.hypotheses import check_hypothesis
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.data.normalise import normalise
from tokenverse_pp.decoding.ngram import read_words
from tokenverse_pp.evaluation.scoring import score_hypotheses
from tokenverse_pp.metrics.f1 import score_positions
from tokenverse_pp.tasks.result import Transcript

FOLDER = ROOT / "recipes" / "human_speech" / "baselines"
baselines = load_script(FOLDER / "baselines.py", "baselines")  # brings its neighbours along
english_check = load_script(FOLDER.parent / "english_check.py", "english_check")
word_lists = load_script(FOLDER.parent / "word_lists.py", "word_lists")
whisper_words, turns_pass, whisper_pass, cascade = map(
    sys.modules.get, ("whisper_words", "turns_pass", "whisper_pass", "cascade")
)
cascade_tuning, baseline_scores, baseline_tables = map(
    sys.modules.get, ("cascade_tuning", "baseline_scores", "baseline_tables")
)
ALL = ["asr", "scd", "endp", "ner", "lid"]


def segment(*parts):
    """A segment as `whisper_pass` stores it, one second a part."""
    return {"temperature": 0.0, "words": [[text, float(i), i + 0.8, 0.9] for i, text in enumerate(parts)]}


def spoken(text, mark_last=""):
    words = [whisper_words.SpokenWord(word, float(i), i + 0.8, 0.9) for i, word in enumerate(text.split())]
    if words and mark_last:
        last = words[-1]
        words[-1] = whisper_words.SpokenWord(last.text, last.start, last.end, last.confidence, mark_last)
    return words


def place(position, pause=0.0, mark="", distance=0.0):
    times = {"time": position - 0.1, "end": position - 0.2, "pause": pause, "gap": 0.2}
    return {"position": position, **times, "mark": mark, "distances": [distance] * len(turns_pass.WINDOWS)}


class TestWords:
    def test_parts_are_joined_to_what_stands_between_spaces(self):
        found = list(whisper_words.written_words([segment(" Ce", " n", "'est", " pas."), segment("Oui")]))
        assert [text for text, *_ in found] == ["Ce", "n'est", "pas.", "Oui"]
        assert found[1][1:3] == (1.0, 2.8)

    def test_numbers_are_spoken_and_marked(self):
        pytest.importorskip("num2words")
        words = whisper_words.spoken_words([segment(" Press", " 25,", " please.")], "en")
        assert [w.text for w in words] == ["press", "twenty", "five", "please"]
        assert [w.number for w in words] == [False, True, True, False]
        assert [w.mark for w in words] == ["", "", ",", "."]
        assert words[1].start == words[2].start == 1.0

    @pytest.mark.parametrize(
        ("text", "language", "expected"),
        [
            ("1,000", "en", "one thousand"),
            ("1.000", "nl", "duizend"),
            ("007", "en", "zero zero seven"),
            ("2nd", "en", "second"),
            ("1er", "fr", "premier"),
            ("3.5", "en", "three point five"),
            ("2nd", "cs", "dva"),  # num2words knows no Czech ordinals
            ("25", "ga", "25"),  # nor Irish
            ("20:30", "es", "veinte treinta"),
        ],
    )
    def test_readings_of_numbers(self, text, language, expected):
        pytest.importorskip("num2words")
        assert " ".join(word for word, _ in whisper_words.spell_numbers(text, language)) == expected

    @given(st.lists(st.text("aé'-.,?! 12ё", min_size=1, max_size=6), max_size=6))
    def test_without_spelling_the_words_are_those_of_the_normaliser(self, parts):
        texts = [" " + part for part in parts]
        words = whisper_words.spoken_words([segment(*texts)], "fr", spell=False)
        apart = " ".join("".join(texts).split())
        assert [w.text for w in words] == [x for token in apart.split() for x in normalise(token, "fr").split()]

    def test_a_mark_behind_a_dash_goes_to_the_word_before(self):
        assert [w.mark for w in whisper_words.spoken_words([segment(" oui", " -.")], "fr")] == ["."]


class TestCandidates:
    def test_silences_lie_between_speech(self):
        probabilities = [0.0, 0.9, 0.9, 0.1, 0.2, 0.9, 0.0]
        assert turns_pass.silences(probabilities) == [(0.096, 0.16)]
        assert turns_pass.silences([0.1, 0.2]) == []

    def test_each_pause_belongs_to_the_nearest_boundary_and_the_longest_counts(self):
        words = [whisper_words.SpokenWord(t, s, s + 1.0, 0.9) for t, s in (("a", 0.0), ("b", 1.0), ("c", 2.0))]
        found = turns_pass.candidates(words, [(0.9, 0.95), (1.0, 1.4), (3.5, 3.9)])
        assert [(p["position"], p["pause"], p["end"]) for p in found] == [(1, 0.4, 1.0)]

    def test_punctuation_and_gaps_are_candidates_without_a_pause(self):
        times = (("a", 0.0, 1.0), ("b", 1.0, 2.0), ("c", 2.2, 3.0), ("d", 3.0, 4.0))
        words = [whisper_words.SpokenWord(t, start, end, 0.9, "." if t == "a" else "") for t, start, end in times]
        found = [(p["position"], p["pause"], p["mark"]) for p in turns_pass.candidates(words, [])]
        assert found == [(1, 0.0, "."), (2, 0.0, "")]
        assert turns_pass.candidates([], [(0.0, 1.0)]) == []

    def test_voices_are_compared_on_both_sides_of_the_pause(self):
        class Voice:
            def vector(self, mel):
                return mel.mean(0) / np.linalg.norm(mel.mean(0))

        mel = np.zeros((400, 2), dtype=np.float32)
        mel[:200, 0] = mel[200:, 1] = 1.0
        for end, distance in ((2.0, 1.0), (1.0, 0.0), (0.1, 0.0)):  # of the last there is too little to compare
            assert turns_pass.distances(Voice(), mel, {"end": end, "pause": 0.0}, (1.0,)) == [distance]


class TestRecords:
    def make(self, text="ja nee misschien", language="nl", **rules):
        words = spoken(text, mark_last=".")
        turn = {"places": [place(1, 0.4, ".", 0.5), place(2, 0.1, "", 0.1)], "speech_end": 2.7}
        tokens = cascade.change_tokens(turn["places"], cascade.ChangeRule(0.3))
        tokens += cascade.end_tokens(turn, words, cascade.EndRule(0.3))
        return cascade.to_record("c", words, tokens, ALL, language)

    def test_a_record_reads_back_as_it_was_meant(self):
        record = self.make()
        assert check_hypothesis(record) == ""
        assert record["text"] == "[NL] ja [ENDP] [SCD] nee misschien [ENDP]"
        heard = Transcript.from_record(record)
        transcript = heard.answers
        assert transcript.words == ("ja", "nee", "misschien")
        assert (transcript.language, transcript.speaker_changes, transcript.endpoints) == ("nl", (1,), (1, 3))
        assert [mark.time for mark in heard.marks] == [0.0, 0.8, 0.9, 2.7]

    def test_the_package_scores_it(self):
        turns = [
            {"text": text, "start": start, "duration": length, "speaker": text, "language": "nl", "endpoint": True}
            for text, start, length in (("ja", 0.0, 0.8), ("nee misschien", 1.0, 1.8))
        ]
        cut = make_cut("c", turns, ["asr", "scd", "endp", "lid"])
        scores = score_hypotheses([cut], [self.make()])
        assert scores["wer"]["all"]["errors"] == 0
        assert scores["scd"]["text"]["f1"] == scores["endp"]["text"]["f1"] == scores["lid"]["accuracy"] == 1.0
        assert scores["scd"]["time"]["0.25"]["f1"] == 1.0
        rows = baseline_scores.counts("cascade", [cut], [self.make()])
        assert rows == [
            {
                **{"system": "cascade", "id": "c", "words": 3, "errors": 0, "language": 1},
                **{"scd_tp": 1, "scd_fp": 0, "scd_fn": 0, "endp_tp": 2, "endp_fp": 0, "endp_fn": 0},
            }
        ]

    def test_entities_by_the_rules_that_label_the_references(self):
        pytest.importorskip("num2words")
        words = whisper_words.spoken_words([segment(" Press", " 25", " on", " Monday", " morning")], "en")
        record = cascade.to_record("c", words, cascade.entity_tokens(words, "en"), ["asr", "ner"], None)
        assert record["text"] == "press [NE] twenty five [/NE] on [NE] monday [/NE] morning"
        assert [e["text"] for e in record["entities"]] == ["twenty five", "monday"]
        assert cascade.entity_tokens(words, "nl") == []

    @pytest.mark.parametrize(("mark", "wanted", "ends"), [(".", ".", True), (",", ".", False), ("", "", True)])
    def test_the_end_of_the_audio_counts_as_a_pause_but_not_as_punctuation(self, mark, wanted, ends):
        turn = {"places": [], "speech_end": 1.0}
        found = cascade.end_tokens(turn, spoken("ja nee", mark), cascade.EndRule(5.0, wanted))
        assert [token[0] for token in found] == ([2] if ends else [])
        assert cascade.end_tokens(turn, [], cascade.EndRule(5.0)) == []


class TestTuning:
    @pytest.fixture(scope="class")
    def dev(self):
        """Speakers change where voices differ by 0.31 and more, turns end after 0.2 s; commas mislead."""
        cuts, heard = [], {}
        for i in range(4):
            turns = [
                {"text": "a b", "start": 0.0, "duration": 2.0, "speaker": "x", "endpoint": True},
                {"text": "c d", "start": 2.2, "duration": 2.0, "speaker": "y", "endpoint": True},
            ]
            cuts.append(make_cut(f"c{i}", turns, ["asr", "scd", "endp"]))
            places = [place(1, 0.19, ",", 0.29), place(2, 0.21, "", 0.31 + 0.1 * i), place(3, 0.0, ",", 0.2)]
            heard[f"c{i}"] = (spoken("a b c d"), {"places": places, "speech_end": 4.0})
        return cuts, heard

    @pytest.mark.parametrize("punctuation", [False, True])
    def test_the_grid_finds_what_tells_them_apart(self, dev, punctuation):
        cuts, heard = dev
        rules, f1 = cascade_tuning.tune(cuts, heard, punctuation)
        assert f1 == {"scd": 1.0, "endp": 1.0}
        assert [p["position"] for p in heard["c0"][1]["places"] if rules.change.holds(p)] == [2]
        assert 0.19 < rules.end.pause <= 0.21

    def test_the_f1_that_is_tuned_is_the_one_that_is_scored(self, dev):
        cuts, heard = dev
        worse = {key: (spoken("a x b c d"), turn) for key, (_, turn) in heard.items()}
        _, f1 = cascade_tuning.tune(cuts, worse, False)
        grid = cascade_tuning.end_grid(("",))
        ref, hyp = "a b c d".split(), "a x b c d".split()

        def by_package(rule):
            ends = [[token[0] for token in cascade.end_tokens(turn, words, rule)] for words, turn in worse.values()]
            return score_positions([(ref, (2, 4), hyp, found) for found in ends])["f1"]

        assert f1["endp"] == max(map(by_package, grid))


class TestFiles:
    def test_a_line_cut_short_is_dropped_and_the_rest_kept(self, tmp_path):
        path = tmp_path / "x.jsonl"
        path.write_text('{"id": "a"}\n{"id": "b"}\n{"id": "c', encoding="utf-8")
        assert list(whisper_pass.read_records(path)) == ["a", "b"]
        assert path.read_text(encoding="utf-8").endswith('"b"}\n')
        path.write_text('{"id": "a"}\n[1]\n', encoding="utf-8")
        with pytest.raises(UserError, match="line 2"):
            whisper_pass.read_records(path)

    def test_the_order_is_random_but_always_the_same(self):
        cuts = [make_cut(str(i), [{"text": "a"}]) for i in range(30)]
        once, again = ([cut.id for cut in whisper_pass.shuffled(cuts)] for _ in range(2))
        assert once == again != [cut.id for cut in cuts]

    def test_score_and_tables_from_stored_passes(self, tmp_path, monkeypatch):
        """The real command line; Whisper's and the VAD's records are made up, so no model is needed."""
        data, work = tmp_path / "data", tmp_path / "work"
        turns = [
            {"text": "ja", "start": 0.0, "duration": 0.8, "speaker": "x", "language": "nl", "endpoint": True},
            {"text": "nee", "start": 1.0, "duration": 0.8, "speaker": "y", "language": "nl", "endpoint": True},
        ]
        for part in ("dev", "test"):
            cut = make_cut(part, turns, ["asr", "scd", "endp", "lid"], corpus="fillets")
            english_check.write_cuts(english_check.CutSet.from_cuts([cut]), data / f"cuts_{part}.jsonl.gz")
            heard = {
                "id": part,
                "language": {"auto": "de", "seven": "nl", "given": "nl"},
                "segments": {"nl": [segment(" Ja.", " Nee.")], "de": [segment(" Ja", " ne")]},
                "seconds": {"language": {"wall": 1.0, "cpu": 0.5}, "words nl": {"wall": 1.0, "cpu": 0.25}},
            }
            turn = {
                "id": part,
                "places": [place(1, 0.2, ".", 0.4)],
                "speech_end": 1.8,
                "seconds": {"vad": {"wall": 0.1, "cpu": 0.1}},
            }
            for name, record in (("whisper", heard), ("turns", turn)):
                (work / name).mkdir(parents=True, exist_ok=True)
                (work / name / f"{part}-int8.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
        results, document = tmp_path / "results.json", tmp_path / "README.md"
        monkeypatch.setattr(baselines, "PACKAGES", ("numpy",))
        base = ["--data", str(data), "--work", str(work)]
        done = CliRunner().invoke(baselines.main, [*base, "score", "--results", str(results)])
        assert done.exit_code == 0, done.output
        systems = json.loads(results.read_text())["scores"]["systems"]
        assert (
            systems["whisper_seven"]["wer"]["all"]["wer"] == 0 and systems["whisper_auto"]["wer"]["all"]["wer"] == 0.5
        )
        assert systems["whisper_auto"]["lid"]["accuracy"] == 0
        assert systems["cascade"]["scd"]["text"]["f1"] == systems["cascade"]["endp"]["text"]["f1"] == 1
        document.write_text("# x\n<!-- table: words -->\n<!-- end -->\n<!-- table: tasks -->\nold\n<!-- end -->\nend\n")
        for _ in range(2):  # the second time changes nothing
            fill = ["tables", "--results", str(results), "--document", str(document)]
            assert CliRunner().invoke(baselines.main, fill).exit_code == 0
            text = document.read_text(encoding="utf-8")
            assert text.count("| Whisper-base, language given | 0.0 |") == 2 and "old" not in text
            assert text.endswith("<!-- end -->\nend\n")

    def test_what_is_not_measured_and_what_is_no_table_is_said(self):
        with pytest.raises(UserError, match="'nothing'"):
            baseline_tables.fill("<!-- table: nothing -->\n<!-- end -->\n", {})
        for name in baseline_tables.TABLES:
            text = f"<!-- table: {name} -->\nstale\n<!-- end -->\n"
            filled = baseline_tables.fill(text, {})
            assert "Not measured yet." in filled and "stale" not in filled

    def test_nothing_decoded_is_one_line(self, tmp_path):
        english_check.write_cuts(english_check.CutSet(), tmp_path / "cuts_dev.jsonl.gz")
        shutil.copy(tmp_path / "cuts_dev.jsonl.gz", tmp_path / "cuts_test.jsonl.gz")
        done = CliRunner().invoke(baselines.main, ["--data", str(tmp_path), "--work", str(tmp_path / "w"), "score"])
        assert done.exit_code == 2 and "baselines.py whisper" in done.output


class TestEnglishCheck:
    @pytest.fixture(scope="class")
    def package(self, tmp_path_factory):
        if shutil.which("dpkg-deb") is None:
            pytest.skip("dpkg-deb is not installed")
        folder = tmp_path_factory.mktemp("deb")
        root = folder / "root"
        test_data = root / english_check.TEST_DATA / "librivox"
        test_data.mkdir(parents=True)
        soundfile.write(test_data / "a-1.wav", np.zeros(16000), 16000)
        (test_data / "transcription").write_text("<s> he was, Mr. Smith  </s> (a-1)\n", encoding="utf-8")
        build_package(root, folder, english_check.PACKAGE)
        shutil.rmtree(root)
        return folder

    def test_the_package_becomes_labelled_cuts(self, package, tmp_path):
        manifest = english_check.write_manifest(tmp_path / "english", ["librivox"], package)
        (cut,) = read_cuts(manifest)
        assert cut.id == "librivox-a-1" and cut.supervisions[0].text == "he was mr smith"
        assert cut.custom == {"tasks": ["asr", "lid"], "corpus": "librivox"}
        assert cut.load_audio().shape == (1, 16000)

    def test_what_is_wrong_is_named(self, package, tmp_path):
        data = english_check.unpack(tmp_path / "english", package)
        with pytest.raises(UserError, match="cards"):
            english_check.read_part(data / "cards", "cards")
        for text, said in (("no markers\n", "line 1"), ("<s> x </s> (b)\n", r"b\.wav is missing")):
            (data / "librivox" / "transcription").write_text(text)
            with pytest.raises(UserError, match=said):
                english_check.read_part(data / "librivox", "librivox")
        with pytest.raises(UserError, match=r"no \.deb file"):
            english_check.unpack(tmp_path / "other", Path(tmp_path))


def test_the_most_frequent_words_of_each_language(tmp_path):
    wordfreq = pytest.importorskip("wordfreq")
    done = CliRunner().invoke(word_lists.main, [str(tmp_path / "words"), "--languages", "nl,cs", "--most", "500"])
    assert done.exit_code == 0, done.output
    for code, known in (("nl", "het"), ("cs", "není")):
        words = read_words(tmp_path / "words" / f"{code}.tsv")
        assert 400 < len(words) <= 500 and not any(any(map(str.isdigit, word)) for word in words)
        assert words[known] == pytest.approx(wordfreq.word_frequency(known, code, "best") * 1e6, rel=5e-3)
    done = CliRunner().invoke(word_lists.main, [str(tmp_path), "--languages", "xx"])
    assert done.exit_code == 1 and "wordfreq has no words of 'xx'" in done.output
