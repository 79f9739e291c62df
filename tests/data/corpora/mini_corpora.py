"""Miniature corpora in the exact layouts that lhotse's recipes read; speech is a tone a word, with noise."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import soundfile

SECONDS_PER_WORD = 0.25
WORDS = {
    "de": "der hund läuft durch den wald und sieht ein haus".split(),
    "pl": "ten pies biegnie przez las i widzi dom źle".split(),
    "fr": "l'homme voit une maison près de la forêt".split(),
    "sv": "hunden springer genom skogen och ser ett hus".split(),
    "en": "the dog runs through a forest and sees that house".split(),
}


def tone(word: str, rate: int, seconds: float = SECONDS_PER_WORD) -> np.ndarray:
    """The same tone for the same word, never for silence."""
    pitch = 150 + int(hashlib.sha256(word.lower().encode()).hexdigest()[:4], 16) % 1500
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * pitch * time) * np.hanning(len(time))).astype(np.float32)


def speech(text: str, rate: int) -> np.ndarray:
    """A sentence (S,) with a little noise."""
    samples = np.concatenate([tone(word, rate) for word in text.split()])
    return samples + np.random.default_rng(1).normal(0, 0.002, len(samples)).astype(np.float32)


def sentence(language: str, number: int, length: int = 4) -> str:
    """Some words of a language."""
    words = WORDS[language]
    return " ".join(words[(number * 3 + i * 2) % len(words)] for i in range(length))


def write(path: Path, samples: np.ndarray, rate: int, **options: str) -> None:
    """An audio file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)


def write_text(path: Path, text: str) -> None:
    """A text file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def make_mls(root: Path, counts=(6, 2, 2)) -> Path:
    """mls_german and mls_polish, FLAC."""
    for first_speaker, name, code in ((10, "german", "de"), (20, "polish", "pl")):
        folder = root / f"mls_{name}"
        lines = ["SPEAKER   |   GENDER   | PARTITION  |  MINUTES   |  BOOK ID   |   TITLE   |   CHAPTER   "]
        for split, count in zip(("train", "dev", "test"), counts):
            transcripts = []
            for number in range(count):
                speaker, book = str(first_speaker + number % 2), {"train": "2961", "dev": "315", "test": "77"}[split]
                name_ = f"{speaker}_{book}_{number:06d}"
                text = sentence(code, number + len(split))
                transcripts.append(f"{name_}\t{text}")
                path = folder / split / "audio" / speaker / book / f"{name_}.flac"
                write(path, speech(text, 16000), 16000)
                gender = "M" if number % 2 else "F"
                lines.append(f"  {speaker}  |  {gender}  |  {split}  |  1.2  |  {book}  |  Buch  |  1  ")
            write_text(folder / split / "transcripts.txt", "\n".join(transcripts) + "\n")
        write_text(folder / "metainfo.txt", "\n".join(lines) + "\n")
    return root


CV_COLUMNS = "client_id path sentence up_votes down_votes age gender accents variant locale segment".split()


def make_commonvoice(root: Path, locales=("fr", "sv-SE"), counts=(4, 2, 2)) -> Path:
    """A release with MP3 clips at 48 kHz; the first sentence of each file has punctuation and a capital."""
    for locale in locales:
        code = locale.split("-")[0]
        for split, count in zip(("train", "dev", "test"), counts):
            rows = []
            for number in range(count):
                text = sentence(code, number + len(split))
                name = f"common_voice_{locale}_{split}{number:05d}.mp3"
                write(root / locale / "clips" / name, speech(text, 48000), 48000, format="MP3")
                shown = f"« {text.capitalize()} ! »" if number == 0 else text
                rows.append([f"client{number % 2}", name, shown, "2", "0", "twenties", "female", "", "", locale, ""])
            out = io.StringIO()
            csv.writer(out, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n").writerows([CV_COLUMNS, *rows])
            write_text(root / locale / f"{split}.tsv", out.getvalue())
    return root


def make_librispeech(root: Path, counts=(4, 2, 2)) -> Path:
    """The parts train-clean-100, dev-clean and test-other."""
    for (part, count), speaker in zip(zip(("train-clean-100", "dev-clean", "test-other"), counts), ("19", "84", "367")):
        folder = root / part / speaker / "198"
        lines = []
        for number in range(count):
            name = f"{speaker}-198-{number:04d}"
            text = sentence("en", number + len(part)).upper()
            lines.append(f"{name} {text}")
            write(folder / f"{name}.flac", speech(text, 16000), 16000)
        write_text(folder / f"{speaker}-198.trans.txt", "\n".join(lines) + "\n")
    return root


VP_COLUMNS = "session_id id_ original_text normed_text speaker_id split gender is_gold_transcript start_time end_time"


def make_voxpopuli(root: Path) -> Path:
    """Two sessions in English; the second segment of the first has no words."""
    rows = []
    for session, split, count in (("20190101-0900-PLENARY-3-en", "train", 4), ("20190102-0900-PLENARY-4-en", "dev", 2),
                                  ("20190103-0900-PLENARY-5-en", "test", 2)):  # fmt: skip
        pieces, time = [np.zeros(8000, np.float32)], 0.5
        for number in range(count):
            text = sentence("en", number + len(split))
            samples = speech(text, 16000)
            pieces += [samples, np.zeros(8000, np.float32)]
            normed = "" if split == "train" and number == 1 else text
            end = time + len(samples) / 16000
            row = [session, f"s{number}", text.capitalize() + ".", normed, f"{number}", split]
            rows.append("|".join(map(str, [*row, "female", "True", time, end])))
            time = end + 0.5
        path = root / "raw_audios" / "en" / "2019" / f"{session}_en.ogg"
        write(path, np.concatenate(pieces), 16000, format="OGG", subtype="VORBIS")
    root.mkdir(parents=True, exist_ok=True)
    with gzip.open(root / "asr_en.tsv.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(["|".join(VP_COLUMNS.split()), *rows]) + "\n")
    return root


# One call: (side, start, transcript). Everything that the conventions of the LDC have.
CALL = [
    ("A", 0.5, "%um the dog runs."),
    ("B", 2.0, "{laugh}"),
    ("B", 2.5, "((that house)) sees --"),
    ("A", 3.6, "a forest"),
    ("A", 4.3, "and through"),  # goes on after 0.3 s
    ("B", 5.2, "I (( )) sees"),  # not understood
    ("A", 6.8, "<Spanish hola>"),
    ("B", 8.0, "&Forest [distortion] runs?"),
    ("B", 9.0, "the [[hm]] house"),
]
CALL_SECONDS = 11


def call_audio(rate: int = 8000) -> np.ndarray:
    """Two channels (S, 2)."""
    samples = np.random.default_rng(3).normal(0, 0.002, (CALL_SECONDS * rate, 2))
    for side, start, text in CALL:
        said = np.concatenate([tone(word, rate, 0.2) for word in text.split()])
        first = round(start * rate)
        samples[first : first + len(said), "AB".index(side)] += said
    return samples


def call_lines(second=CALL):
    """(start, end, side, text) of each turn."""
    return [(start, round(start + 0.2 * len(text.split()), 2), side, text) for side, start, text in second]


def make_callhome(root: Path, counts=(2, 1, 1)) -> Path:
    """LDC97S42 and LDC97T14 with uncompressed u-law SPHERE files, and a transcript line that runs over."""
    number = 4065
    for split, count in zip(("train", "devtest", "evaltest"), counts):
        for _ in range(count):
            speech_dir = root / "LDC97S42" / "data" / split.replace("evaltest", "evltest")
            write(speech_dir / f"en_{number}.sph", call_audio(), 8000, format="NIST", subtype="ULAW")
            lines = ["# a call", ""] + [f"{a} {b} {side}: {text}\n" for a, b, side, text in call_lines()]
            lines[-1] = lines[-1].replace(" house", "\nhouse")
            write_text(root / "LDC97T14" / "transcrpt" / split / f"en_{number}.txt", "\n".join(lines))
            number += 1
    return root


def make_eval2000(root: Path) -> Path:
    """LDC2002S09 and LDC2002T43."""
    write(root / "LDC2002S09/hub5e_00/english/en_4156.sph", call_audio(), 8000, format="NIST", subtype="ULAW")
    tag = '<contraction e_form="[we=>we][\'re=>are]">'
    lines = ["#Language: eng", "#File id: en_4156", ""]
    lines += [
        f"{a} {b} {side}: {tag if text.startswith('a ') else ''}{text}\n"
        for a, b, side, text in call_lines()
        if "Spanish" not in text
    ]
    write_text(root / "LDC2002T43/reference/english/en_4156.txt", "\n".join(lines))
    return root


def make_fleurs(root: Path, splits=(("fr_fr", ("train", "dev", "test")), ("cmn_hans_cn", ("test",)))) -> Path:
    """The hub's repository: tables without header, clips packed in archives; Chinese has only its test set."""
    for locale, parts in splits:
        for split in parts:
            lines = []
            archive = root / "data" / locale / "audio" / f"{split}.tar.gz"
            archive.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(archive, "w:gz") as tar:
                for number in range(3 if split == "train" else 2):
                    text = "你好世界" if locale.startswith("cmn") else sentence("fr", number + len(split))
                    raw = "你好，世界。" if locale.startswith("cmn") else f"{text.capitalize()}."
                    clip = io.BytesIO()
                    soundfile.write(clip, speech(" ".join(text.split()), 16000), 16000, format="WAV")
                    name = f"1000408853635479{len(split)}{number}.wav"
                    member = tarfile.TarInfo(f"{split}/{name}")
                    member.size = len(clip.getvalue())
                    tar.addfile(member, io.BytesIO(clip.getvalue()))
                    spelled = " ".join("|".join(text.split())) + " |"
                    samples = str(len(text.split()) * 4000)
                    lines.append("\t".join([f"{number + 7}", name, raw, text, spelled, samples, "FEMALE"]))
            write_text(archive.parent.parent / f"{split}.tsv", "\n".join(lines) + "\n")
    return root


SLUE_ROWS = [  # raw text, normalised text, entities of it as (type, words)
    ("", "the dog runs through brussels in two days", [("GPE", "brussels"), ("DATE", "two days")]),
    ("", "a forest sees the council's house", [("ORG", "council"), ("FAC", "house")]),
    ("That house runs.", "that house runs", []),
]
SLUE_HEADER = ["id", "raw_text", "normalized_text", "speaker_id", "split", "raw_ner", "normalized_ner"]


def slue_rows(split: str):
    """(cells of a row by name, with the entities as triples; samples of its clip)."""
    for number, (raw, text, entities) in enumerate(SLUE_ROWS):
        name = f"20131007-0900-PLENARY-19-en_20131007-21:26:0{len(split)}_{number}"
        found = [[kind, text.index(words), len(words)] for kind, words in entities]
        cells = [name, raw, text, "None" if number else "28115", split, [], found]
        yield dict(zip(SLUE_HEADER, cells)), speech(text, 16000)


def make_slue(root: Path, blind: bool = False) -> Path:
    """The unpacked archive; its test set with entities, or blind."""
    for split in ("fine-tune", "dev", "test"):
        hidden = 2 * (blind and split == "test")
        rows = []
        for cells, samples in slue_rows(split):
            write(root / split / f"{cells['id']}.ogg", samples, 16000, format="OGG", subtype="VORBIS")
            rows.append(list(cells.values())[: len(SLUE_HEADER) - hidden])
        out = io.StringIO()  # as pandas writes it
        csv.writer(out, delimiter="\t", lineterminator="\n").writerows(
            [SLUE_HEADER[: len(SLUE_HEADER) - hidden], *rows]
        )
        write_text(root / f"slue-voxpopuli_{split}{'_blind' if hidden else ''}.tsv", out.getvalue())
    return root


# One earnings call: (speaker, start, words; "-" before a word that the aligner did not find).
EARNINGS = [
    ("0", 0.5, "Good day , Mr. Brown ."),
    ("1", 2.0, "Thank you ."),
    ("1", 3.0, "Twenty two percent , Inc. and more ?"),
    ("0", 6.0, "We <laugh> -cannot -hear you ."),
    ("1", 8.0, "Oh <inaudible> yes ."),
    ("1", 10.0, "The end …"),
    ("0", 11.5, "Bye"),
]
EARNINGS_HEADER = "token|speaker|ts|endTs|punctuation|prepunctuation|case|tags|oldTs|oldEndTs|ali_comment"


def make_earnings(root: Path, calls=("4320211", "MP3-A")) -> Path:
    """The repository's folder with calls as MP3 of 24 kHz, and the aligned transcripts."""
    for call in calls:
        samples, lines = np.random.default_rng(5).normal(0, 0.002, 13 * 24000).astype(np.float32), [EARNINGS_HEADER]
        for speaker, start, text in EARNINGS:
            time = start
            for token in text.split():
                if token in ",?…" or token == ".":
                    cells = lines[-1].split("|")
                    lines[-1] = "|".join([*cells[:4], token, *cells[5:]])
                    continue
                found, token, mark = token[0] != "-", token.lstrip("-"), "." * token.endswith(".")
                end = round(time + 0.25, 4)
                if token[0] != "<":
                    samples[round(time * 24000) : round(time * 24000) + 6000] += tone(token.rstrip("."), 24000)
                times = [f"{time:.4f}", f"{end:.4f}"] if found else ["", ""]
                case = "UC" if token[0].isupper() else "LC"
                comment = "" if found else "del"
                lines.append("|".join([token.rstrip("."), speaker, *times, mark, "", case, "[]", "", "", comment]))
                time = end
        write(root / "media" / f"{call}.mp3", samples, 24000, format="MP3")
        write_text(root / f"transcripts/force_aligned_nlp_references/{call}.aligned.nlp", "\n".join(lines) + "\n")
    return root
