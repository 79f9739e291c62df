from hypothesis import given, settings
from hypothesis import strategies as st

from tokenverse_pp.tasks import Answers, EntitySpan, build_tasks, parse, render
from tokenverse_pp.tasks.registry import tasks_for_tokens
from tokenverse_pp.tasks.transcript import is_task_token

NAMES = ["scd", "endp", "ner", "lid"]
LANGUAGES = ["fr", "ne", "pt-br", "nep-x"]
TYPES = ["NUM", "PER"]
TOKENS = ["[SCD]", "[ENDP]", "[NE]", "[/NE]", "[NE:NUM]", "[NE:ODD]", "[NE:]", "[FR]", "[NEP]", "[PT-BR]", "[EN]"]
ODD = ["[]", "[", "]", "[x", "x]", "[??]", "[scd]", "[/ne]", "[ASR]", "[NE", "[/NE:NUM]", "[[NE]]", "▁"]


@st.composite
def task_sets(draw):
    options = {"lid": {"languages": LANGUAGES}, "ner": {"types": draw(st.sampled_from([[], TYPES]))}}
    return build_tasks(draw(st.lists(st.sampled_from(NAMES), unique=True)), options)


@st.composite
def transcripts(draw):
    """A transcript with answers for some of the tasks; the others were not labelled."""
    words = tuple(draw(st.lists(st.text("abé'", min_size=1, max_size=3), max_size=7)))
    n = len(words)
    cuts = sorted(draw(st.sets(st.integers(0, n), max_size=6)))
    kinds = st.sampled_from([None, *TYPES, "OTHER"])
    kept = draw(st.lists(st.booleans(), min_size=len(cuts), max_size=len(cuts)))
    spans = [EntitySpan(a, b, draw(kinds)) for a, b, keep in zip(cuts, cuts[1:], kept) if keep]
    answers = {
        "scd": tuple(sorted(draw(st.sets(st.integers(1, n - 1))))) if n > 1 else (),
        "endp": tuple(sorted(draw(st.sets(st.integers(1, n))))) if n else (),
        "ner": tuple(spans),
        "lid": draw(st.sampled_from([None, *LANGUAGES])),
    }
    labelled = draw(st.sets(st.sampled_from(NAMES)))
    return Answers(words, {name: answers[name] for name in NAMES if name in labelled})


@settings(max_examples=400)
@given(transcripts(), task_sets())
def test_parse_is_the_inverse_of_render(transcript, tasks):
    """For the tasks that were labelled; text cannot say that the others were not."""
    read = parse(render(transcript, tasks), tasks)
    written = tasks.restrict(transcript)
    assert read.words == written.words
    assert {name: read.answers[name] for name in written.answers} == dict(written.answers)
    assert set(read.answers) == set(tasks.names) - {"asr"}
    empty = parse(" ".join(transcript.words), tasks).answers
    assert all(read.answers[name] == empty[name] for name in set(read.answers) - set(written.answers))


@given(transcripts())
def test_asr_alone_writes_the_plain_words(transcript):
    assert render(transcript, build_tasks(["asr"])) == transcript.text


soup = st.lists(st.sampled_from([*TOKENS, *ODD, "a", "b"]) | st.text(max_size=4), max_size=14).map(" ".join)


@settings(max_examples=400)
@given(soup, st.none() | task_sets())
def test_soup_parses_to_a_fixed_point(text, tasks):
    """Malformed output is read without error, and what was read is well-formed."""
    first = parse(text, tasks)
    known = tasks if tasks is not None else tasks_for_tokens(text.split())
    again = render(first, known)
    assert parse(again, known) == first
    assert render(parse(again, known), known) == again
    assert not any(is_task_token(word) for word in first.words)
    assert first.words == tuple(word for word in text.split() if not is_task_token(word))


def test_order_at_one_place():
    tasks = build_tasks(NAMES, {"lid": {"languages": ["fr"]}})
    answers = {"lid": "fr", "ner": (EntitySpan(0, 1), EntitySpan(1, 2)), "endp": (1, 2), "scd": (1,)}
    assert render(Answers(("oui", "non"), answers), tasks) == ("[FR] [NE] oui [/NE] [ENDP] [SCD] [NE] non [/NE] [ENDP]")


def test_malformed_output():
    tasks = build_tasks(NAMES, {"lid": {"languages": ["fr", "nl"]}})

    def read(text):
        return parse(text, tasks)

    assert read("[NE] a b").entities == ()  # never closed
    assert read("a [/NE] b").entities == ()  # never opened
    assert read("[NE] a [NE] b [/NE]").entities == (EntitySpan(1, 2),)  # opened again: the first is dropped
    assert read("[NE] [/NE] a").entities == ()  # empty
    assert read("[NE] a [/NE] [/NE] b").entities == (EntitySpan(0, 1),)
    assert read("a [NL] b [FR]").language == "nl"  # the first counts, wherever it stands
    assert read("[SCD] a [SCD] [SCD] b [SCD]").speaker_changes == (1,)
    assert read("[ENDP] a [ENDP] [ENDP]").endpoints == (1,)


def test_nepali_and_entities_do_not_meet():
    tasks = build_tasks(["lid", "ner"], {"lid": {"languages": ["ne"]}})
    text = render(Answers(("namaste",), {"lid": "ne", "ner": (EntitySpan(0, 1),)}), tasks)
    assert text == "[NEP] [NE] namaste [/NE]"
    assert parse(text, tasks).language == "ne"


def test_without_tasks_every_token_is_read():
    transcript = parse("[PT-BR] [NE:NUM] dois [/NE] [ENDP] [SCD] sim")
    assert transcript.language == "pt-br"
    assert transcript.entities == (EntitySpan(0, 1, "NUM"),)
    assert (transcript.endpoints, transcript.speaker_changes) == ((1,), (1,))
