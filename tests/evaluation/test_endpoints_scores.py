"""False cut-offs against latency of a model: turns and their pauses, what decoding says of them, the command."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from lhotse import CutSet
from lhotse.supervision import AlignmentItem
from scripts import ROOT
from toy_runs import read_cuts

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import DecodeOptions, SearchOptions, StreamingOptions
from tokenverse_pp.cli.main import cli
from tokenverse_pp.data.manifests import write_cuts
from tokenverse_pp.decoding.hypothesis import Calibration, Curve, read_calibration
from tokenverse_pp.decoding.recognizer import Recognizer
from tokenverse_pp.evaluation.endpoints import (
    SILENCE,
    VAD_SAMPLES,
    TurnClip,
    batch_tracks,
    endpoint_scores,
    endpoint_table,
    scored_pauses,
    share_cut_off,
    stream_tracks,
    turns_of,
)
from tokenverse_pp.models.bundle import load_model

TOY_MODEL = ROOT / "tests" / "oracles" / "fixtures" / "toy_model"
GREEDY = SearchOptions("greedy")
SHIFT = VAD_SAMPLES / 16000


class Hears:
    """A voice activity detector that hears what it is told."""

    def __init__(self, speech):
        self.speech = speech

    def probabilities(self, audio):
        found = np.zeros(-(-len(audio) // VAD_SAMPLES))
        for first, end in self.speech:
            found[first:end] = 1.0
        return found


@pytest.fixture(scope="module")
def toy(tiny_corpus):
    """Cuts of which some turn is complete, and each word has its time: a pause of 0.3 s before the second."""
    cuts = [cut for cut in read_cuts(tiny_corpus, "test") if any(s.custom["endpoint"] for s in cut.supervisions)][:4]
    for cut in cuts:
        for turn in cut.supervisions:
            half = turn.duration / 2
            turn.alignment = {
                "word": [
                    AlignmentItem("a", turn.start, half - 0.3),
                    AlignmentItem("b", turn.start + half, half - 0.1),
                ]
            }
    return cuts, load_model(TOY_MODEL)


def test_turns_are_clips_with_silence_and_pauses_between_words(toy):
    cuts, _ = toy
    complete = [turn for cut in cuts for turn in cut.supervisions if turn.custom["endpoint"]]
    turns = turns_of(cuts)
    assert [turn.name for turn in turns] == [turn.id for turn in complete]
    for turn, said in zip(turns, complete):
        samples = round(SILENCE * 16000)
        assert not turn.audio[-samples:].any() and turn.audio[:-samples].any()
        assert len(turn.audio) - samples == pytest.approx(16000 * said.duration, abs=16)
        assert turn.speech_end == pytest.approx(said.duration - 0.1)
        (pause,) = turn.inner
        assert pause == pytest.approx((said.duration / 2 - 0.3, said.duration / 2))


def test_without_times_of_words_a_detector_hears_the_pauses(toy):
    cuts, _ = toy
    cut = cuts[0].map_supervisions(lambda turn: dataclasses.replace(turn, alignment=None))
    turn = turns_of([cut], Hears([(2, 5), (7, 9), (16, 18)]))[0]
    (pause,) = turn.inner
    assert pause == pytest.approx((9 * SHIFT, 16 * SHIFT), abs=1e-3)  # the one of 64 ms is too short
    assert turn.speech_end == pytest.approx(18 * SHIFT)
    assert turns_of([cut], Hears([])) == []
    unlabelled = cut.with_id("other")
    unlabelled.custom = {"tasks": ["asr"]}
    assert turns_of([unlabelled], Hears([(0, 9)])) == []


def test_tracks_are_what_streams_tell_and_what_the_recognizer_says(toy):
    cuts, loaded = toy
    turns = turns_of(cuts)
    options = StreamingOptions(ChunkOptions(320, 4, 4), search=GREEDY)
    alone = [stream_tracks(loaded, [turn], options)[0] for turn in turns]
    together = stream_tracks(loaded, turns, options)
    assert max(score for _, scores in together for score in scores) > 0.5
    for (times, scores), (same_times, same) in zip(together, alone):
        assert times == same_times == pytest.approx([0.32 * (i + 1) for i in range(len(times))])
        assert scores == pytest.approx(same, abs=1e-4)
    recognizer = Recognizer(loaded, DecodeOptions(GREEDY, pauses=True))
    for turn, (times, scores) in zip(turns, batch_tracks(loaded, turns, DecodeOptions(GREEDY))):
        ((best,),) = recognizer.recognize([turn.audio])
        assert len(times) == len(scores) and times[-1] <= len(turn.audio) / 16000 + recognizer.shift
        words = [pause for pause in best.pauses if pause > 0]
        assert not words or scores[-1] == pytest.approx(best.pauses[max(np.flatnonzero(best.pauses))], abs=1e-4)


def test_scores_are_those_of_the_pause_and_of_what_was_known_before():
    turn = TurnClip("turn", torch.zeros(48000), 1.0, ((0.4, 0.65),))
    track = ([0.3, 0.5, 0.6, 0.7, 0.9, 1.1, 2.0], [0.1, 0.2, 0.3, 0.0, 0.0, 0.6, 0.9])
    inner, end = scored_pauses([turn], [track])
    assert inner.times == pytest.approx((-0.1, 0.1, 0.2)) and inner.scores == (0.1, 0.2, 0.3)
    assert (inner.is_end, inner.length) == (False, pytest.approx(0.25))
    assert end.times == pytest.approx((-0.1, 0.1, 1.0)) and end.scores == (0.0, 0.6, 0.9)
    assert share_cut_off([turn, turn], [track, ([0.5], [0.9])], 0.3) == 1.0
    assert share_cut_off([turn, turn], [track, ([0.5], [0.9])], 0.35) == 0.5
    scores = endpoint_scores([inner, end])
    table = endpoint_table(scores).splitlines()
    assert table[0] == "false cut-offs in % of 1 pauses inside turns; 1 ends of turns"
    assert table[2].split() == ["100", "ms", "0.0", "0.31", "0.0", "100.0"]  # of silence alone: 0.1 < 0.25
    assert scores.as_dict()["false_cutoffs_at_ms"]["300"]["silence"] == 0.0
    with pytest.raises(UserError, match="found 1 ends and 0 pauses"):
        endpoint_scores([end])


def test_thresholds_stay_beside_the_curves_and_old_files_are_read(tmp_path):
    (tmp_path / "calibration.json").write_text(
        json.dumps({"words": {"a": 2, "b": 1, "c": 0}, "tasks": {"a": 1, "b": 1, "c": 1}, "fitted_on": "dev"})
    )
    old = read_calibration(tmp_path)
    assert old == Calibration(Curve(2, 1, 0), Curve(1, 1, 1)) and not old.endpoints
    new = Calibration(old.words, old.tasks, {300: 0.4, 500: 0.8}, 640)
    new.update(tmp_path / "calibration.json")
    assert read_calibration(tmp_path) == new
    assert json.loads((tmp_path / "calibration.json").read_text())["fitted_on"] == "dev"
    for broken in (
        {"chunk_ms": 640},
        {"chunk_ms": "x", "thresholds": {}},
        {"chunk_ms": 1, "thresholds": {"x": 1}},
        [1],
    ):
        (tmp_path / "calibration.json").write_text(json.dumps({**vars_of(old), "endpoints": broken}))
        with pytest.raises(UserError, match="no calibration"):
            read_calibration(tmp_path)


def vars_of(calibration):
    return {name: vars(getattr(calibration, name)) for name in ("words", "tasks")}


def test_the_command_fits_thresholds_measures_them_and_draws(toy, tmp_path):
    cuts, _ = toy
    write_cuts(CutSet.from_cuts(cuts), tmp_path / "cuts.jsonl.gz")
    shutil.copytree(TOY_MODEL, tmp_path / "model")

    def run(*more):
        given = ["endpoints", "--model", tmp_path / "model", "--cuts", tmp_path / "cuts.jsonl.gz", *more]
        return CliRunner().invoke(cli, [str(word) for word in given], catch_exceptions=False)

    stored = run("--store", "--chunk-ms", 320)
    assert stored.exit_code == 0 and "thresholds: " in stored.output
    found = read_calibration(tmp_path / "model")
    assert found.endpoint_chunk_ms == 320 and all(0 < threshold < 1 for threshold in found.endpoints.values())
    assert set(found.endpoints) and found.words == Curve()
    measured = run("--chunk-ms", 320, "--output", tmp_path / "scores.json", "--plot", tmp_path / "curve.svg")
    assert "stored thresholds:" in measured.output and (tmp_path / "curve.svg").stat().st_size > 1000
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["chunk_ms"] == 320 and set(scores["false_cutoffs_at_ms"]) == {
        "100",
        "200",
        "300",
        "500",
        "700",
        "1000",
    }
    assert "stored thresholds:" not in run("--chunk-ms", 0).output  # they are of another form of decoding
