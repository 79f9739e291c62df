"""Words with their speakers, by meeteval: cpWER, DI-cpWER and ORC-WER of recordings that were decoded in windows.

cpWER (Watanabe et al., CHiME-6, 2020) joins all words of a speaker, on both sides, and takes the assignment of written
speakers to true ones with the fewest errors. It needs to know who said a turn. `[SCD]` says that somebody else speaks
on, not who, so it is counted only where the speaker of a turn is known:

- the turns of the hypotheses have a field ``speaker`` (of a diarisation that was run over them), or
- the recording has a channel for each speaker (`manifest prepare ami --mic ihm`): the channel is the speaker.

DI-cpWER (diarisation-invariant cpWER) gives each written turn to the speaker where it makes the fewest errors: what is
left of cpWER with perfect clustering of the turns that were found, a lower bound. meeteval finds it by a greedy search.

ORC-WER (optimal reference combination) asks for the words only: all that was written is one stream, in which the
reference's turns stand in the order of their starts.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set

from lhotse.cut import Cut
from word_errors import language_of

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import aligned
from tokenverse_pp.data.hypotheses import Hypothesis
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.result import Transcript

NormaliseText = Callable[[str, Optional[str]], str]
Segment = Dict[str, Any]  # as meeteval's SegLST has them
UNKNOWN = "unknown"


def recording_of(cut: Cut) -> str:
    """What meeteval calls a session: the recording that a cut is a window of."""
    recording = getattr(cut, "recording", None)
    return str(cut.id if recording is None else recording.id)


def reference_segments(cuts: Sequence[Cut], text: NormaliseText) -> List[Segment]:
    """A segment for each supervision, times from the start of the recording.

    Raises:
        UserError: for a supervision without a speaker.
    """
    segments = []
    for cut in cuts:
        for turn in cut.supervisions:
            if not turn.speaker:
                raise UserError(f"cut {cut.id}: supervision {turn.id} has no speaker (--no-speakers: no cpWER)")
            segments.append(_segment(cut, turn.start, turn.end, turn.speaker, text(turn.text or "", language_of(cut))))
    return segments


def hypothesis_segments(
    cuts: Sequence[Cut], hyps: Mapping[str, Hypothesis], tasks: TaskSet, text: NormaliseText
) -> List[Segment]:
    """A segment for each written turn; its speaker is `UNKNOWN` where nothing tells. See the module's docstring.

    Args:
        hyps: by cut id.
        tasks: to read them with.
        text: words and their language -> the words that count, as of the reference.
    """
    channels: Dict[str, Set[Any]] = {}
    for cut in cuts:
        channels.setdefault(recording_of(cut), set()).add(getattr(cut, "channel", 0))
    segments = []
    for cut in cuts:
        channel = getattr(cut, "channel", 0)
        by_channel = f"channel {channel}" if len(channels[recording_of(cut)]) > 1 else UNKNOWN
        for turn in _turns(hyps[cut.id], tasks):
            words = text(turn["text"], language_of(cut))
            if words:
                speaker = turn.get("speaker") or by_channel
                segments.append(_segment(cut, turn["start"], turn["end"], speaker, words))
    silent = sorted({recording_of(cut) for cut in cuts} - {segment["session_id"] for segment in segments})
    # meeteval wants every recording on both sides.
    return segments + [_words(name, 0.0, 0.0, UNKNOWN, "") for name in silent]


def _turns(hyp: Hypothesis, tasks: TaskSet) -> Iterator[Mapping[str, Any]]:
    """Text, start, end and, where known, speaker of each written turn; all words as one without speaker changes."""
    if hyp.get("turns"):
        yield from hyp["turns"]
    else:
        for turn in Transcript.from_record(hyp, tasks).spans():
            yield {"text": turn.text, "start": turn.start, "end": turn.end}


def _segment(cut: Cut, start: float, end: float, speaker: str, words: str) -> Segment:
    offset = float(getattr(cut, "start", 0.0))
    return _words(recording_of(cut), offset + start, offset + end, speaker, words)


def _words(session: str, start: float, end: float, speaker: str, words: str) -> Segment:
    times = {"start_time": round(start, 6), "end_time": round(end, 6)}
    return {"session_id": session, "speaker": speaker, "words": words, **times}


def speakers_known(segments: Sequence[Segment]) -> bool:
    """Whether each written turn has a speaker."""
    return all(segment["speaker"] != UNKNOWN or not segment["words"] for segment in segments)


def speaker_scores(reference: Sequence[Segment], hypothesis: Sequence[Segment]) -> Dict[str, Dict[str, Any]]:
    """``cpwer`` where the speakers are known, ``di_cpwer`` and ``orc_wer``: rates and counts over all recordings.

    Raises:
        UserError: meeteval is not installed.
    """
    try:
        import meeteval
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'tokenverse_pp[scoreboards]'") from error
    # The greedy search behind DI-cpWER tells turns apart by their number.
    refs, hyps = (
        meeteval.io.SegLST([{**segment, "segment_index": i} for i, segment in enumerate(segments)])
        for segments in (reference, hypothesis)
    )
    stream = hyps.map(lambda segment: {**segment, "speaker": "all"})
    found = {"di_cpwer": meeteval.wer.greedy_dicpwer(refs, hyps), "orc_wer": meeteval.wer.orcwer(refs, stream)}
    if speakers_known(hypothesis):
        found = {"cpwer": meeteval.wer.cpwer(refs, hyps), **found}
    return {name: _rates(meeteval.wer.combine_error_rates(rates), len(rates)) for name, rates in found.items()}


def _rates(rate: Any, recordings: int) -> Dict[str, Any]:
    """Of meeteval's error rate: fractions of the reference words, as `error_rates` names them."""
    words = max(rate.length, 1)
    parts = {"ins": rate.insertions, "del": rate.deletions, "sub": rate.substitutions}
    found = {"wer": rate.errors / words, **{name: count / words for name, count in parts.items()}}
    speakers = {
        name: getattr(rate, name)
        for name in ("scored_speaker", "missed_speaker", "falarm_speaker")
        if hasattr(rate, name)
    }
    return {**found, "words": rate.length, "errors": rate.errors, "recordings": recordings, **speakers}


TITLES = {"cpwer": "cpWER", "di_cpwer": "DI-cpWER", "orc_wer": "ORC-WER"}


def speaker_table(scores: Mapping[str, Mapping[str, Mapping[str, Any]]], titles: Mapping[str, str]) -> str:
    """A row for each normaliser and rate.

    Args:
        scores: by normaliser, as `speaker_scores` gives them.
        titles: of the normalisers.
    """
    rows = [["words and speakers", "normaliser", "WER %", "ins %", "del %", "sub %", "words", "recordings"]]
    for name, rates in scores.items():
        for kind, found in rates.items():
            parts = [f"{100 * found[key]:.1f}" for key in ("ins", "del", "sub")]
            counts = [str(found["words"]), str(found["recordings"])]
            rows.append([TITLES[kind], titles[name], f"{100 * found['wer']:.2f}", *parts, *counts])
    return aligned(rows, left=2)
