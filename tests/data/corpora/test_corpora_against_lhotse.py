"""AMI, Common Voice, MLS (and the others, as far as they go): our cuts beside what lhotse's recipe alone gives."""

import pytest
from mini_ami import MEETINGS, speaker_of
from mini_runs import CORPORA, cuts_of

READ = ["commonvoice", "librispeech", "mls", "voxpopuli"]


def turns_of(cut):
    """(supervision, start in the recording, text before normalisation) of a cut's turns."""
    for sup in cut.supervisions:
        yield sup, cut.start + sup.start, (sup.custom or {}).get("original_text", sup.text)


@pytest.mark.parametrize("name", CORPORA)
def test_recordings_turns_speakers_texts_and_times_are_lhotses(corpora, lhotse_alone, name):
    seen = 0
    for part, pair in lhotse_alone(name).items():
        recordings = {recording.id: recording for recording in pair["recordings"]}
        turns = {turn.id: turn for turn in pair["supervisions"]}
        cuts = cuts_of(corpora[name].out, part)
        assert {cut.recording.id for cut in cuts} == set(recordings)
        for cut in cuts:
            theirs = recordings[cut.recording.id]
            # MP3 decoders pad: the length of the decoded audio may differ from the header's by a frame or two.
            assert cut.recording.duration == pytest.approx(theirs.duration, abs=0.06 if name == "commonvoice" else 1e-4)
            for sup, start, text in turns_of(cut):
                seen += 1
                turn = turns[sup.id]
                assert (sup.recording_id, sup.speaker, sup.gender) == (turn.recording_id, turn.speaker, turn.gender)
                assert text == turn.text
                assert start == pytest.approx(turn.start, abs=1e-6)
                assert sup.duration == pytest.approx(turn.duration, abs=0.06 if name == "commonvoice" else 1e-6)
                # What lhotse read besides is kept.
                assert (turn.custom or {}).items() <= (sup.custom or {}).items()
    assert seen > 5


@pytest.mark.parametrize("name", READ)
def test_read_speech_is_one_cut_a_supervision_in_lhotses_order(corpora, lhotse_alone, name):
    for part, pair in lhotse_alone(name).items():
        assert [cut.id for cut in cuts_of(corpora[name].out, part)] == [
            turn.id for turn in pair["supervisions"] if turn.text
        ]


@pytest.mark.parametrize("name", ["ami", "librispeech", "mls", "voxpopuli"])
def test_audio_of_16_khz_is_left_where_it_is(corpora, name):
    for path in corpora[name].out.glob("cuts_*"):
        for cut in cuts_of(path.parent, path.name[5:-9]):
            assert cut.recording.sources[0].source.startswith(str(corpora[name].corpus_dir))
    assert not (corpora[name].out / "audio").exists()


def test_languages_are_codes_and_texts_normalised(corpora, lhotse_alone):
    cut = cuts_of(corpora["commonvoice"].out, "train_fr")[0]
    (sup,) = cut.supervisions
    assert sup.custom["original_text"].startswith("« ") and sup.custom["original_text"].endswith(" ! »")
    assert sup.text == sup.custom["original_text"].lower()[2:-4]
    assert lhotse_alone("commonvoice")["train_sv"]["supervisions"][0].language == "sv-SE"
    assert cuts_of(corpora["commonvoice"].out, "train_sv")[0].supervisions[0].language == "sv"
    assert lhotse_alone("mls")["dev_pl"]["supervisions"][0].language == "polish"


def test_ami_meeting_is_two_windows_with_the_endpoints_of_its_punctuation(corpora):
    for split, meeting in MEETINGS.items():
        first, second = cuts_of(corpora["ami"].out, split)
        said = [(s.speaker[-7:], s.text, s.custom["endpoint"]) for c in (first, second) for s in c.supervisions]
        names = {agent: speaker_of(meeting, agent)[-7:] for agent in "ABC"}
        assert said == [
            (names["A"], "the dog runs", True),
            (names["A"], "that house sees", False),  # a comma
            (names["B"], "a forest", True),  # a question mark, which lhotse keeps; the full stops it drops
            (names["C"], "the house runs", True),  # overlaps the turn before
            (names["A"], "through a forest and sees", True),
            (names["B"], "that dog runs", False),  # no mark, though a pause follows
        ]
        assert (first.start, first.end) == (0.3, 3.85) and second.start == 8.8
