"""Random words and task tokens with times, as a decoder could write them (pytest puts this folder on the path)."""

from hypothesis import strategies as st

from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.tasks.result import Word, transcript_of_words

TASKS = build_tasks(
    ["asr", "scd", "endp", "ner", "lid"], {"lid": {"languages": ["fr", "nl"]}, "ner": {"types": ["PER", "NUM"]}}
)
ALPHABET = "aæžя你'-&<>;"


@st.composite
def spoken(draw):
    """Words and task tokens, malformed ones too; times never go back."""
    text = st.one_of(
        st.sampled_from(TASKS.symbols),
        st.text(ALPHABET, min_size=1, max_size=12),
        st.text("xy", min_size=40, max_size=99),
    )
    texts = draw(st.lists(text, max_size=60))
    words, time = [], 0.0
    for item in texts:
        start = time + draw(st.sampled_from([0.0, 0.04, 0.3, 3.0]))
        end = start + draw(st.sampled_from([0.04, 0.4, 8.0]))
        words.append(Word(item, round(start, 3), round(end, 3), draw(st.sampled_from([0.25, 0.5, 1.0]))))
        time = draw(st.sampled_from([start, end]))
    return words


@st.composite
def transcripts(draw):
    """Transcripts of `spoken`, of any tasks."""
    words = draw(spoken())
    names = draw(st.sets(st.sampled_from(TASKS.names)))
    name = draw(st.sampled_from(["call", "a b", "x/y", ";; odd", "<b>"]))
    duration = max((word.end for word in words), default=0.0) + draw(st.sampled_from([0.0, 1.5]))
    return transcript_of_words(words, TASKS.subset(sorted(names)).names, duration, name, TASKS)
