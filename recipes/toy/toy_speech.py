"""The toy's languages, speakers and sounds: what is said, and how it sounds. Pure functions over numpy.

A letter is a phone: a pair of pure tones above 600 Hz, as on a telephone's keypad. A speaker is a hum below
600 Hz (a comb of harmonics of the speaker's pitch) and a balance between the two tones. A turn that is
complete ends with a pitch that falls by an octave from its last word on, and the voice is drawn out past that word;
any other turn stays level and stops with its last word. Who takes the floor breathes in audibly before the first
word, who goes on does not: to compare voices across a pause takes a small model far longer than to learn the words.
How long a pause is tells nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Set, Tuple

import numpy as np

from tokenverse_pp.base.errors import UserError

SAMPLING_RATE = 16000
HUM_LIMIT = 600.0  # Hz: harmonics of the voice stay below, the phones' tones above
BREATH_SECONDS = 0.08
FALL_SECONDS = 0.12  # for how long the voice of a complete turn goes on after its last word

# Languages carry codes that ISO 639-2 keeps for private use.
# Inventories: qaa = a i u b d g k m n, qab = a e o l m n p s t.
LETTERS = "abdegiklmnopstu"
LOW_TONES = (700.0, 920.0, 1210.0, 1590.0)  # Hz, about a third apart
HIGH_TONES = (2090.0, 2750.0, 3610.0, 4750.0)
PHONES = {letter: (LOW_TONES[i % 4], HIGH_TONES[i // 4]) for i, letter in enumerate(LETTERS)}


# Names in a text as the label schema has them: {"start": char, "end": char, "type": str}.
Entities = Tuple[Dict[str, Any], ...]


@dataclass(frozen=True)
class Language:
    """A closed lexicon: words that are never part of a name, and names (one or two words) that always are."""

    code: str
    words: Tuple[str, ...]
    names: Tuple[Tuple[str, str], ...]  # (phrase, entity type)


def _language(code: str, words: str, given: str, family: str, places: str) -> Language:
    people = given.split() + [f"{first} {last}" for first in given.split() for last in family.split()]
    names = [(name, "PER") for name in people] + [(name, "LOC") for name in places.split(", ")]
    return Language(code, tuple(words.split()), tuple(names))


LANGUAGES = (
    _language(
        "qaa",
        words="ba di gu ka mu ibi uda bam dig gak kun nid mab ukim agi dun",
        given="nik ada",
        family="kadi bun",
        places="miba, ugan, ugan dak",
    ),
    _language(
        "qab",
        words="le po ta se mo alo ena pel tos nal sap lem nopa eto ase pon",
        given="tal eso",
        family="leno sot",
        places="mola, onet, onet pas",
    ),
)


@dataclass(frozen=True)
class Speaker:
    """A voice: ``pitch`` in Hz; ``tilt``, the level of the low tones (the high ones have ``2 - tilt``)."""

    name: str
    pitch: float
    tilt: float


SPEAKERS = (
    Speaker("toy-1", 90.0, 0.7),
    Speaker("toy-2", 150.0, 1.3),
    Speaker("toy-3", 250.0, 0.9),
    Speaker("toy-4", 420.0, 1.1),
)


@dataclass(frozen=True)
class ToyTurn:
    """What one speaker says in one go, with its labels, and from when to when in seconds."""

    text: str
    entities: Entities
    complete: bool
    speaker: Speaker
    start: float
    end: float


def compose_turn(language: Language, num_words: int, rng: np.random.Generator) -> Tuple[str, Entities]:
    """Draw the words of a turn, a name among them in half of the cases: the text and its entities."""
    if rng.random() < 0.5:
        return " ".join(rng.choice(language.words, size=num_words)), ()
    phrase, kind = language.names[rng.integers(len(language.names))]
    others = [str(word) for word in rng.choice(language.words, size=max(1, num_words - len(phrase.split())))]
    at = int(rng.integers(len(others) + 1))
    start = len(" ".join(others[:at])) + (at > 0)
    text = " ".join([*others[:at], phrase, *others[at:]])
    return text, ({"start": start, "end": start + len(phrase), "type": kind},)


def compose_new_turn(
    language: Language, words: Tuple[int, int], rng: np.random.Generator, barred: Set[str]
) -> Tuple[str, Entities]:
    """`compose_turn` with a number of words from a range (both ends in it) until the text is not a ``barred`` one."""
    for _ in range(1000):
        text, entities = compose_turn(language, int(rng.integers(words[0], words[1] + 1)), rng)
        if text not in barred:
            return text, entities
    raise UserError("--dev, --test: the toy's languages are too small for sets of this size; expected some hundreds")


def voice_turn(text: str, speaker: Speaker, complete: bool, rng: np.random.Generator) -> np.ndarray:
    """The sound of a turn as float32 ``(samples,)`` within -0.6..0.6: its words, 30 to 50 ms between them."""
    pieces: List[np.ndarray] = []
    for word in text.split():
        pieces += [_tones(word, speaker.tilt, rng), _silence(rng.uniform(0.03, 0.05))]
    if complete:
        pieces[-1] = _silence(FALL_SECONDS)
    else:
        pieces.pop()
    tones = np.concatenate(pieces)
    pitch = np.full(len(tones), speaker.pitch * rng.uniform(0.98, 1.02))
    if complete:
        falling = len(pieces[-2]) + len(pieces[-1])
        pitch[-falling:] *= np.linspace(1.0, 0.5, falling)
    return (0.1 * tones + 0.15 * _hum(pitch)).astype(np.float32)


def compose_utterance(
    language: Language, rng: np.random.Generator, barred: Set[str]
) -> Tuple[np.ndarray, List[ToyTurn]]:
    """Draw and voice an utterance of one to four turns, about 1 to 5 seconds, with a little noise.

    ``barred`` are texts that no turn may have. The speaker changes between turns in half of the cases.
    """
    num_turns = int(rng.integers(1, 5))
    pieces: List[np.ndarray] = []
    turns: List[ToyTurn] = []
    speaker = None
    for _ in range(num_turns):
        pieces.append(_silence(rng.uniform(0.1, 0.2)))
        if speaker is None or rng.random() < 0.5:
            others = [other for other in SPEAKERS if other is not speaker]
            speaker = others[rng.integers(len(others))]
            _breathe_in(pieces[-1], rng)
        text, entities = compose_new_turn(language, (4, 5) if num_turns == 1 else (2, 4), rng, barred)
        complete = bool(rng.random() < 0.6)
        start = sum(len(piece) for piece in pieces) / SAMPLING_RATE
        sound = voice_turn(text, speaker, complete, rng)
        pieces.append(sound)
        turns.append(ToyTurn(text, entities, complete, speaker, start, start + len(sound) / SAMPLING_RATE))
    pieces.append(_silence(rng.uniform(0.15, 0.25)))
    audio = np.concatenate(pieces) * np.float32(rng.uniform(0.6, 1.0))
    return audio + 0.003 * rng.standard_normal(len(audio), dtype=np.float32), turns


def _tones(word: str, tilt: float, rng: np.random.Generator) -> np.ndarray:
    """The tone pairs of a word's phones, 60 to 80 ms each."""
    samples = (rng.uniform(0.06, 0.08, size=len(word)) * SAMPLING_RATE).astype(int)
    pairs = np.array([PHONES[letter] for letter in word])
    low, high = (np.sin(_phase(np.repeat(pairs[:, k], samples))) for k in range(2))
    return (tilt * low + (2 - tilt) * high) * np.concatenate([_envelope(n) for n in samples])


def _hum(pitch: np.ndarray) -> np.ndarray:
    """The voice: harmonics below `HUM_LIMIT`, each half as strong as the one before."""
    phase = _phase(pitch)
    harmonics = range(1, int(HUM_LIMIT / pitch[0]) + 1)
    return sum((0.5 ** (k - 1) * np.sin(k * phase) for k in harmonics), np.zeros_like(phase)) * _envelope(len(pitch))


def _phase(frequency: np.ndarray) -> np.ndarray:
    """Phase in radians of an oscillator, from its frequency in Hz at each sample; wrapped, for float32."""
    cycles = np.cumsum(frequency / SAMPLING_RATE) % 1.0
    return (2 * np.pi * cycles).astype(np.float32)


def _envelope(samples: int) -> np.ndarray:
    """Rise and fall of 8 ms at both ends of a sound."""
    ramp = np.arange(1, samples + 1, dtype=np.float32) / (0.008 * SAMPLING_RATE)
    return np.minimum(1.0, np.minimum(ramp, ramp[::-1]))


def _breathe_in(pause: np.ndarray, rng: np.random.Generator) -> None:
    """Add a breath, 80 ms of noise, to the end of a pause."""
    samples = int(BREATH_SECONDS * SAMPLING_RATE)
    pause[-samples:] += 0.1 * rng.standard_normal(samples, dtype=np.float32) * _envelope(samples)


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLING_RATE), dtype=np.float32)
