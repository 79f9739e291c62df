"""Punctuation and case: written text <-> tokens, labels, scores, outputs, import."""

from __future__ import annotations

import json
import re
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.api.formats import render as formatted
from tokenverse_pp.api.formats.subtitles import cues_of
from tokenverse_pp.cli.main import cli
from tokenverse_pp.cli.transcribing import view
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.data.normalise import normalise
from tokenverse_pp.decoding.constraints import constraints_for
from tokenverse_pp.evaluation.comparison import count_utterances
from tokenverse_pp.evaluation.scoring import score_hypotheses, score_table
from tokenverse_pp.tasks import Answers, Mark, build_tasks, parse, render
from tokenverse_pp.tasks.base import ScoredExample
from tokenverse_pp.tasks.punct import ALLCAPS, CAP, TOKENS, joined, read_written, settled_text, spelled
from tokenverse_pp.tasks.result import Transcript, Word, transcript_of_words

TASKS = build_tasks(["scd", "endp", "ner", "punct"])
PUNCT = TASKS["punct"]

LETTERS = {"latin": "abcdeéèñöçß", "cyrillic": "абвгдейё", "greek": "αβγδεή", "arabic": "ابتثج", "hindi": "कखगघ"}
MARKS = {"latin": ".,?!:", "cyrillic": ".,?!:", "greek": ".,!:", "arabic": ".،؟!:", "hindi": "।,?!:"}


@st.composite
def written_texts(draw):
    """A written text in the marks of its script, and its plain words."""
    script = draw(st.sampled_from(sorted(LETTERS)))
    words, pieces = [], []
    for _ in range(draw(st.integers(1, 8))):
        word = draw(st.text(LETTERS[script], min_size=1, max_size=6))
        case = draw(st.sampled_from([str, str.capitalize, str.upper]))
        piece = case(word) if "ß" not in word else word
        words.append(word)
        pieces.append(piece + draw(st.sampled_from(["", "", *MARKS[script]])))
    return " ".join(pieces), words


@given(written_texts())
def test_a_written_text_survives_its_tokens(text_and_words):
    written, words = text_and_words
    answer = read_written(written, words)
    assert joined(spelled(words, answer)) == written
    transcript = Answers(tuple(words), {"punct": answer})
    assert parse(render(transcript, TASKS), TASKS).answers["punct"] == answer


@given(
    st.lists(
        st.tuples(st.sampled_from("你好世界かナー々"), st.sampled_from(["", *"。，？！："])), min_size=1, max_size=9
    )
)
def test_chinese_and_japanese_are_written_without_spaces(pairs):
    written = "".join(char + mark for char, mark in pairs)
    words = normalise(written, "ja").split()
    assert joined(spelled(words, read_written(written, words))) == written


@given(
    st.text(st.characters(max_codepoint=0x52F, exclude_categories=["Cc", "Cs"]) | st.sampled_from(" .,?!:'’\"«»-—…ﬁ²"))
)
def test_any_text_fits_its_own_plain_words(text):
    words = normalise(text, "en").split()
    answer = read_written(text, words)
    assert list(answer) == sorted(answer, key=lambda pair: (pair[0], PUNCT.ranks[pair[1]]))
    # What is written back has the same plain words, and gives the same tokens again.
    again = joined(spelled(words, answer))
    if all(unicodedata.normalize("NFKC", char).upper().lower() == char for char in "".join(words)):
        assert normalise(again, "en").split() == words
        assert read_written(again, words) == answer


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(PUNCT.symbols))))
def test_any_tokens_are_read(pairs):
    marks = [Mark(token, position) for position, token in sorted(pairs)]
    answer = PUNCT.from_marks(marks, 4)
    assert PUNCT.from_marks([Mark(token, position) for position, token in answer], 4) == answer
    assert all(position > 0 if token in TOKENS else position < 4 for position, token in answer)
    assert len({(position, token in TOKENS) for position, token in answer}) == len(answer)


@pytest.mark.parametrize(
    ("written", "plain", "expected"),
    [
        ("Quoi ?! L'aide, « oui »...", "quoi l'aide oui", "[CAP] quoi [?] [CAP] l'aide [,] oui [.]"),
        ("¿Qué? ¡Sí!", "qué sí", "[CAP] qué [?] [CAP] sí [!]"),
        ("3,5 an A.M. Dix-Sept; NASA", "3 5 an a m dix sept nasa",
         "3 5 an [CAP] a [CAP] m [.] [CAP] dix [CAP] sept [,] [ALLCAPS] nasa"),
        ("McDonald I", "mcdonald i", "mcdonald [CAP] i"),
        ("Ёлка. Ещё", "елка еще", "[CAP] елка [.] [CAP] еще"),
        ("İzmir IŞIK", "izmir ışık", "[CAP] izmir [ALLCAPS] ışık"),
        ("... And so", "and so", "[CAP] and so"),
        ("Amélie!", "Amélie!", "Amélie!"),  # plain words that kept both
    ],
)  # fmt: skip
def test_written_texts_of_several_kinds(written, plain, expected):
    words = plain.split()
    assert TASKS.render(Answers(tuple(words), {"punct": read_written(written, words)})) == expected


def test_turkish_capitals():
    marks = [(0, CAP), (1, ALLCAPS)]
    assert joined(spelled(["izmir", "ışık"], marks, "tr")) == "İzmir IŞIK"
    assert joined(spelled(["izmir"], [(0, CAP)])) == "Izmir"


def turn_cut(text, written, tasks=("asr", "punct")):
    sup = SimpleNamespace(
        start=0.0, end=1.0, duration=1.0, text=text, speaker="a", language="fr", custom={"written": written}
    )
    return SimpleNamespace(id="c", duration=1.0, supervisions=[sup], custom={"tasks": list(tasks)})


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (None, "expected a text because the cut is labelled for punct"),
        ("Oui, madame.", "does not fit the plain words at 'oui monsieur'"),
        ("Oui,", "ends before the plain words, at 'monsieur'"),
        ("Oui, monsieur, merci.", "does not fit the plain words"),
    ],
)
def test_labels_that_do_not_fit(written, problem):
    (found,) = PUNCT.check(turn_cut("oui monsieur", written))
    assert found.startswith("supervision 0, field 'custom.written': ")
    assert problem in found
    assert PUNCT.check(turn_cut("oui monsieur", "Oui, Monsieur.")) == []


def test_the_order_of_tokens_is_what_the_search_allows():
    answers = {"punct": ((0, CAP), (1, "[.]"), (1, CAP)), "ner": parse("[NE] a [/NE] b").entities, "endp": (1,)}
    text = TASKS.render(Answers(("a", "b"), {**answers, "scd": (1,)}))
    assert text == "[NE] [CAP] a [/NE] [.] [ENDP] [SCD] [CAP] b"
    pieces = ["<blk>", "<unk>", "▁", "▁a", *TASKS.symbols]
    tokenizer = SimpleNamespace(vocab_size=len(pieces), id_of=pieces.index, pieces=lambda: pieces)
    allowed = constraints_for(TASKS, TASKS.names, tokenizer)
    ids = [pieces.index(piece if piece.startswith("[") else "▁a") for piece in text.split()]
    assert allowed.allows(ids)
    for wrong in ("[.]", "▁a [.] [,]", "[CAP] [ALLCAPS]", "▁a [ENDP] [.]", "▁a [CAP] [.]"):
        assert not allowed.allows([pieces.index(piece) for piece in wrong.split()])
    without = constraints_for(TASKS, ["scd", "endp", "ner"], tokenizer)
    assert not without.allows([pieces.index("▁a"), pieces.index("[.]")])


def example(ref, hyp):
    return ScoredExample("c", parse(ref, TASKS), parse(hyp, TASKS))


@given(
    st.lists(st.tuples(*[st.sampled_from(["", *TOKENS])] * 2, *[st.sampled_from(["", CAP, ALLCAPS])] * 2), min_size=1)
)
def test_f1_is_that_of_classified_slots_where_the_words_are_right(slots):
    """As scikit-learn's classification_report gives it for the slots behind the words."""
    ref = " ".join(f"{case} w{i} {mark}" for i, (mark, _, case, _) in enumerate(slots))
    hyp = " ".join(f"{case} w{i} {mark}" for i, (_, mark, _, case) in enumerate(slots))
    scores = PUNCT.score([example(ref, hyp)])
    for token in TOKENS:
        tp = sum(a == b == token for a, b, _, _ in slots)
        both = sum((a == token) + (b == token) for a, b, _, _ in slots)
        assert scores[token[1:-1]]["f1"] == pytest.approx(2 * tp / both if both else 1.0)
    assert scores["case"]["accuracy"] == pytest.approx(np.mean([a == b for _, _, a, b in slots]))


def test_scores_with_misheard_words():
    scores = PUNCT.score([example("[CAP] ja [,] nee [.]", "[CAP] ja [,] [CAP] nou nee [!]")])
    assert (scores[","]["f1"], scores["."]["recall"], scores["!"]["precision"]) == (1.0, 0.0, 0.0)
    assert (scores["case"]["right"], scores["case"]["words"]) == (2, 2)
    assert (scores["all"]["tp"], scores["all"]["fp"], scores["all"]["fn"]) == (1, 1, 1)


def heard(text="[CAP] bonjour [,] [NE] [CAP] amélie [/NE] [!] [ENDP] [SCD] [CAP] oui [.]", tasks=TASKS.names):
    words = [Word(word, i / 2, i / 2 + 0.2, 0.9) for i, word in enumerate(text.split())]
    return transcript_of_words(words, tasks, 9.0, "call", TASKS)


def test_outputs_have_the_written_text():
    transcript = heard()
    assert transcript.text == "bonjour amélie oui"
    assert transcript.written_text() == "Bonjour, Amélie! Oui."
    assert formatted(transcript, "text").splitlines()[0].endswith("Bonjour, Amélie!")
    for name in ("srt", "vtt", "html"):
        assert "Oui." in formatted(transcript, name)
        assert "[CAP]" not in formatted(transcript, name).split("Time line")[0]
    assert "[Amélie!] ◆" in view(transcript, "call.wav", colour=False)
    assert formatted(transcript, "ctm").split()[4] == "bonjour"  # for scorers: plain words
    assert json.loads(formatted(transcript, "json"))["written"] == "Bonjour, Amélie! Oui."
    assert Transcript.from_json(transcript.to_json()).written_text() == transcript.written_text()
    record = transcript.to_record()
    assert record["written"] == "Bonjour, Amélie! Oui."
    assert Transcript.from_record(record, TASKS).to_record() == record


@pytest.mark.parametrize("tasks", [TASKS.names, ("asr", "ner", "endp"), (*TASKS.names, "lid")])
def test_settled_text_is_that_of_the_transcript_without_what_may_change(tasks):
    """For every beginning of the pieces of a recording, up to a whole word."""
    text = "[TR] [CAP] ▁iz mir [,] [NE] [CAP] ▁ama sya [/NE] [!] [ENDP] ▁ [SCD] [ALLCAPS] ▁oui [.] ▁你 ▁好 [.]"
    known = build_tasks(tasks, {"lid": {"languages": ["tr"]}})
    pieces = [piece for piece in text.split() if piece in known.symbols or not piece.startswith("[")]
    settled = []
    for count in range(len(pieces) + 1):
        if count < len(pieces) and pieces[count] in ("mir", "sya"):
            continue
        some = known.reader.read_tokens(pieces[:count], range(count), [-0.1] * count, 0.04, None, 0.0, 9.0, "call")
        stop = max(len(some.words) - ("punct" in tasks), 0)
        settled.append(settled_text(pieces[:count], known.reader))
        assert settled[-1] == some.written_text(0, stop)
    assert all(after.startswith(before) for before, after in zip(settled, settled[1:]))
    assert ("İzmir, Amasya! OUİ." if "lid" in tasks else "masya") in settled[-1]


def test_chinese_has_no_spaces_in_pages_in_subtitles_and_on_the_terminal():
    transcript = heard("你 好 [,] [NE] 世 界 [/NE] [.] [ENDP] 再 见 ok [.]")
    assert transcript.written_text() == "你好，世界。再见 ok."
    assert [cue.lines for cue in cues_of(transcript)] == [("你好，世界。",), ("再见 ok.",)]
    assert "你好，[世界。] ◆ 再见 ok." in view(transcript, "call.wav", colour=False)
    page = re.sub("<[^>]*>", "", formatted(transcript, "html"))
    assert "你好，世界。◆ 再见 ok." in page


def test_without_the_task_the_words_stay_plain():
    transcript = heard("bonjour [ENDP]", ("asr", "endp"))
    assert "written" not in transcript.to_dict()
    assert "written" not in transcript.to_record()
    assert transcript.written_text() == transcript.text == "bonjour"


def test_scores_of_hypotheses_and_their_parts():
    cut = turn_cut("oui monsieur", "Oui, monsieur.")
    cut.supervisions[0].speaker = None
    hyps = [{"id": "c", "text": "[CAP] oui [,] monsieur [!]", "tasks": ["asr", "punct"]}]
    scores = score_hypotheses([cut], hyps)
    assert scores["punct"][","]["f1"] == 1.0
    table = score_table(scores)
    assert "punct ," in table
    assert "punct case: accuracy 100.0 % of 2 words" in table
    counted = count_utterances([cut], hyps)
    assert counted.metrics["punct case accuracy"] == {"c": (2, 2)}
    assert counted.metrics["punct ."] == {"c": (0, 1)}
    not_active = score_hypotheses([cut], [{"id": "c", "text": "oui monsieur", "tasks": ["asr"]}])
    assert "punct" not in not_active
    assert not_active["not_decoded"] == {"punct": 1}


def test_import_takes_written_texts_by_an_option(tmp_path):
    soundfile.write(str(tmp_path / "a.wav"), np.zeros(16000, np.float32), 16000)
    (tmp_path / "t.csv").write_text('audio,text\na.wav,"Oui, Amélie!"\n', encoding="utf-8")
    base = ["manifest", "import", str(tmp_path / "cuts.jsonl"), "--table", str(tmp_path / "t.csv")]
    run = CliRunner().invoke(cli, [*base, "--written"])
    assert run.exit_code == 2
    assert "--written: needs --normaliser words" in run.output
    run = CliRunner().invoke(cli, [*base, "--normaliser", "words", "--written"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    (cut,) = read_cuts(tmp_path / "cuts.jsonl")
    assert cut.custom["tasks"] == ["asr", "punct"]
    assert (cut.supervisions[0].text, cut.supervisions[0].custom["written"]) == ("oui amélie", "Oui, Amélie!")
