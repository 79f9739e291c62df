"""Checking that recordings hold their texts, with a listener that needs no model."""

import sys

import numpy as np
import pytest
from corpus.clips import Clip
from hypothesis import given
from hypothesis import strategies as st
from scripts import ROOT, load_script

from tokenverse_pp.base.errors import UserError

check_english = load_script(ROOT / "recipes" / "human_speech" / "check_english.py", "check_english")
pair_check = sys.modules["pair_check"]

TEXT = st.text("abcdefgh", min_size=1, max_size=12)


class TestErrors:
    @given(st.lists(TEXT, min_size=1, max_size=6))
    def test_what_is_heard_as_written_has_none(self, texts):
        assert pair_check.clip_errors(texts, "".join(texts)) == [0.0] * len(texts)

    @given(st.lists(TEXT, min_size=1, max_size=6), st.text("abcdefgh", max_size=60))
    def test_they_are_all_that_differs(self, texts, heard):
        errors = pair_check.clip_errors(texts, heard)
        total = sum(error * len(text) for error, text in zip(errors, texts))
        assert all(error >= 0 for error in errors)
        # What is inserted between two texts counts for both.
        assert total >= abs(len(heard) - len("".join(texts))) - 1e-6

    def test_they_fall_on_the_clip_that_is_not_heard(self):
        assert pair_check.clip_errors(["hello", "good", "night"], "hellonight") == [0.0, 1.0, 0.0]
        before, inside, after = pair_check.clip_errors(["hello", "good", "night"], "helloxxgoodnight")
        assert before == 0.4 and inside == 0.5 and after == 0.0
        assert pair_check.clip_errors([""], "much") == [0.0]

    def test_letters_are_compared(self):
        pytest.importorskip("num2words")
        assert pair_check.letters("I'm 26, Joe-King!") == pair_check.letters("im twenty six joe king")


class TestWindows:
    @given(st.lists(st.floats(0.1, 40.0), max_size=30), st.integers(1, 6))
    def test_each_clip_is_in_one_and_only_long_ones_pass_the_limit(self, lengths, most):
        seconds = {str(n): length for n, length in enumerate(lengths)}
        windows = pair_check.plan_windows(list(seconds), seconds, 0.5, most)
        assert [clip for window in windows for clip in window] == list(seconds)
        for window in windows:
            assert len(window) == 1 or len(window) <= most
            assert len(window) == 1 or sum(seconds[clip] + 0.5 for clip in window) <= pair_check.LONGEST_WINDOW + 1e-6

    def test_a_line_cut_short_is_dropped_and_another_one_named(self, tmp_path):
        path = tmp_path / "heard.jsonl"
        path.write_text('{"round": 1, "clips": ["a"], "text": "x"}\n{"round": 1, "cl')
        assert pair_check.read_windows(path) == [pair_check.Window(1, ("a",), "x")]
        assert path.read_text().endswith("}\n")
        path.write_text('{"round": 1}\n')
        with pytest.raises(UserError, match="line 1"):
            pair_check.read_windows(path)
        assert pair_check.read_windows(tmp_path / "none") == []


@pytest.fixture
def clips():
    words = ["one tree", "two birds", "three stones", "a wrong text", "five rivers", "an unlucky one"]
    return [Clip(f"c{n}", "sky", "en", "s", "", text, f"c{n}", group="") for n, text in enumerate(words)]


class Ears:
    """Hears each clip by its first sample; `c3` is something else, `c5` is only heard right beside few others."""

    def __init__(self, clips):
        self.texts = {n: clip.text for n, clip in enumerate(clips)}
        self.texts[3] = "quite another matter"
        self.heard = []

    def load(self, clip):
        return np.full(16000, 1.0 + int(clip.id[1:]), np.float32)

    def __call__(self, samples):
        numbers = [int(value) - 1 for value in samples[::8000] if value]
        numbers = list(dict.fromkeys(numbers))
        self.heard.append(numbers)
        return " ".join("bzzzz" if n == 5 and len(numbers) > 3 else self.texts[n] for n in numbers)


def test_bad_pairs_are_those_that_are_bad_twice(clips, tmp_path):
    ears = Ears(clips)
    errors = pair_check.hear_all(clips, ears.load, ears, tmp_path / "heard.jsonl")
    assert check_english.bad_ids(errors) == ["c3"]
    assert ears.heard[0] == [0, 1, 2, 3, 4, 5] and {5, 3} <= set(ears.heard[1]) and len(ears.heard) == 2


def test_a_stopped_run_goes_on_where_it_was(clips, tmp_path):
    output = tmp_path / "heard.jsonl"
    ears = Ears(clips)
    first = pair_check.hear_all(clips, ears.load, ears, output)
    again = Ears(clips)
    assert pair_check.hear_all(clips, again.load, again, output) == first and again.heard == []
    output.write_text(output.read_text().splitlines(keepends=True)[0])
    assert pair_check.hear_all(clips, again.load, again, output) == first and len(again.heard) == 1


def test_windows_of_clips_that_are_no_longer_there_are_passed_over(clips, tmp_path):
    windows = [pair_check.Window(1, ("c0", "gone"), "one tree"), pair_check.Window(1, ("c1",), "two birds")]
    assert pair_check.errors_of(clips, windows) == {"c1": 0.0}
