"""Makers of broken input, seeded or drawn by hypothesis: tables, annotation files and manifests."""

import copy
import gzip
import json
import math

from hypothesis import strategies as st

NASTY = [
    *(None, True, False, 0, -1, 3.5, 1e308, -1e308, 10**30, 10**400, math.nan, math.inf, -math.inf),
    *("", " ", "\t", "x", "NaN", "1e999", "-0.5", "[SCD]", "a  b", "é" * 40, "\ud800", "\x00", "a\nb", "\u202e"),
    *([], {}, [[]], ["a"], {"a": 1}, [None], [[1]]),
    *("null", "[" * 50, "{}", "9" * 5000, "../../etc", "/etc/hostname", "a" * 3000),
]
PATHS = [
    *"../../etc/hostname /etc/hostname sub/../../a.wav a.wav/../../x.wav none.wav . .. / a.wav/ ~/a.wav".split(),
    *("pipe:cat a.wav", "cat a.wav |", "file:///etc/hostname", "http://localhost/a.wav", "x/" * 3000),
    *("", "x" * 300 + ".wav", "notes.txt", "empty.wav", "torn.wav", "sub", "a\x00.wav", "\ud800.wav", "-", "A.WAV"),
]
ENTITIES = [
    *("[]", "{}", "[1]", '[{"start": 0}]', "[" * 5000, '[{"start": 0', "B-X", "B-X O O O O O O", "Z O"),
    *('[{"start": 0, "end": 99}]', '[{"start": -1, "end": 3}]', '[{"start": 1, "end": 2}]', '{"start": 0, "end": 3}'),
    *('[{"start": 1e99, "end": 2}]', '[{"start": true, "end": 3}]', '[{"start": ' + "9" * 5000 + ', "end": 3}]'),
    *('[{"start": 0, "end": 3, "type": 5}]', '[{"start": 0, "end": 3, "type": "\\ud800"}]'),
    '[{"start": 0, "end": 3}, {"start": 0, "end": 3}]',
]
TIMES = ["nan", "inf", "-1", "x", "1e400", "9" * 400, "", "0", "4.05", "4.2", "100", "1,5", "00:01", "0x10", "\u0661"]
COLUMNS = ["id", "audio", "start", "end", "text", "speaker", "language", "entities", "endpoint", "tasks"]
VALUES = {
    "id": ["", "u0", "a\nb", "\ud800", "x" * 2000, " "],
    "audio": PATHS,
    "start": TIMES,
    "end": TIMES,
    "text": ["", " ", "[SCD] a", "a]", "\x00", "x" * 5000, "\ud800", "a\u2028b", "[Paris](LOC)", "<NE>x"],
    "speaker": ["", "\ud800", "x" * 2000, "a\nb"],
    "language": ["", "French", "F", "fr_FR", "??", "\ud800"],
    "entities": ENTITIES,
    "endpoint": ["", "maybe", "2", "TRUE", "no"],
    "tasks": ["", "asr", "asr,lib", "lid lid", "[]", "ner", "asr,scd,endp,ner,lid"],
}


def good_row(number, rng):
    start = rng.choice([0.0, 0.5, 1.25])
    return {
        "id": f"u{number}",
        "audio": rng.choice(["a.wav", "b.wav", "sub/c.flac"]),
        "start": start,
        "end": start + rng.choice([0.5, 1.0, 2.5]),
        "text": rng.choice(["bon jour", "new york today", "oui"]),
        "speaker": rng.choice(["s1", "s2"]),
        "language": "fr",
        "entities": rng.choice(["[]", '[{"start": 0, "end": 3, "type": "X"}]']),
        "endpoint": rng.choice(["true", "false"]),
        "tasks": "asr,lid",
    }


def broken_table(rng):
    """(name, bytes, number of rows or None where that is not sure)."""
    rows = [good_row(number, rng) for number in range(rng.randint(1, 6))]
    kind = rng.choice(["csv", "tsv", "jsonl"])
    for _ in range(rng.randint(1, 3)):
        field = rng.choice(COLUMNS)
        rng.choice(rows)[field] = rng.choice(VALUES[field] if kind != "jsonl" or rng.random() < 0.5 else NASTY)
    if kind == "jsonl":
        lines = [json.dumps(row) for row in rows]
    else:
        lines = [(("," if kind == "csv" else "\t").join(COLUMNS))]
        lines += [_cells(row, kind) for row in rows]
    data = "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"
    count = len(rows)
    if rng.random() < 0.4:
        data, sure = spoil_bytes(data, rng)
        count = count if sure else None
    if kind == "tsv" and any(isinstance(v, str) and "\n" in v for row in rows for v in row.values()):
        count = None
    return (f"T.{kind}", *maybe_packed(data, count, rng))


def _cells(row, kind):
    values = ["" if row[name] is None else str(row[name]) for name in COLUMNS]
    if kind == "tsv":
        return "\t".join(values)
    return ",".join('"' + value.replace('"', '""') + '"' for value in values)


def maybe_packed(data, count, rng):
    """As it is mostly; as gzip, whole or cut off, now and then. The name's ending tells (`packed`)."""
    if rng.random() < 0.85:
        return data, count, False
    packed = gzip.compress(data)
    if rng.random() < 0.5:
        return packed, count, True
    return packed[: rng.randint(0, len(packed) - 1)], None, True


def spoil_bytes(data, rng):
    """Bytes with something wrong, and whether the number of lines is still the same."""
    at = rng.randrange(len(data) + 1)
    lines = data.split(b"\n")
    del lines[rng.randrange(len(lines))]
    bits = bytearray(data)
    for _ in range(rng.randint(1, 5) if bits else 0):
        bits[rng.randrange(len(bits))] = rng.randrange(256)
    changes = {
        "bom": b"\xef\xbb\xbf" + data,
        "crlf": data.replace(b"\n", b"\r\n"),
        "nul": data[:at] + b"\0" + data[at:],
        "latin": data[:at] + b"\xe9" + data[at:],
        "cut": data[:at],
        "drop": b"\n".join(lines),
        "utf16": data.decode("utf-8", "replace").encode("utf-16"),
        "empty": rng.choice([b"", b"\n\n", b"\r", b"\xef\xbb\xbf"]),
        "quote": data[:at] + b'"' + data[at:],
        "deep": data[:at] + b"[" * 100_000 + data[at:],
        "delete": data[:at] + data[at + rng.randint(1, 20) :],
        "bits": bytes(bits),
    }
    change = rng.choice(list(changes))
    return changes[change], change in ("bom", "crlf")


TEXT_FILES = {
    "stm": "a 1 anna 0.0 1.5 <o,f0> bon jour\na 1 ben 1.5 3.0 oui\nb 1 anna 0.5 2.0 non\n",
    "rttm": "SPEAKER a 1 0.0 1.5 <NA> <NA> anna <NA> <NA>\nSPEAKER b 1 0.5 1.5 <NA> <NA> ben <NA> <NA>\n"
    "LEXEME a 1 0.2 0.3 bon lex anna 0.9 <NA>\nLEXEME b 1 0.7 0.2 oui lex ben 0.9 <NA>\n",
    "ctm": "a 1 0.1 0.3 bon 0.9\na 1 0.5 0.4 jour\nb 1 0.6 0.2 non\n",
    "srt": "1\n00:00:00,500 --> 00:00:01,500\nbon jour\n\n2\n00:00:02,000 --> 00:00:03,000\noui\n",
    "vtt": "WEBVTT\n\n00:00.500 --> 00:01.500\n<v Anna>bon jour</v>\n\n00:02.000 --> 00:03.000\noui\n",
    "json": json.dumps(
        {
            "name": "a",
            "duration": 4.0,
            "tasks": ["asr", "scd", "endp", "ner"],
            "words": [{"text": w, "start": t, "end": t + 0.4, "confidence": 0.9} for t, w in enumerate(["bon", "oui"])],
            "marks": [{"text": "[ENDP]", "position": 2, "time": 1.5, "confidence": 0.9}],
            "turns": [{"number": 1, "text": "bon oui", "start": 0.0, "end": 1.4, "first": 0, "stop": 2}],
            "entities": [],
            "endpoints": [1.5],
        }
    ),
    "segments": "u1 a 0.5 1.5\nu2 a 1.75 3.25\nu3 b 0 -1\n",
    "text": "u1 bon jour\nu2 oui\nu3 non merci\n",
    "wav.scp": "a a.wav\nb b.wav\n",
    "ann": "T1\tLOC 0 3\tbon\nT2\tPER 4 8\tjour\n",
    "txt": "bon jour",
    "conll": "# id = u1\nbon B-X\njour I-X\n\n# id = u2\noui O\n",
}


def broken_text(name, rng):
    """The bytes of an annotation file with something wrong."""
    text = TEXT_FILES[name]
    if rng.random() < 0.5:
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        words = lines[at].split(" ")
        words[rng.randrange(len(words))] = rng.choice([*TIMES, "x", "", "\ud800", "a\x00", "999", "<NA>", "T1", "-->"])
        lines[at] = " ".join(words)
        if rng.random() < 0.3:
            lines.append(rng.choice(lines))
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    return spoil_bytes(text.encode(), rng)[0]


def broken_manifest(cuts, rng):
    """(name, bytes) of a manifest of the given cuts (dictionaries) with something wrong."""
    cuts = copy.deepcopy(cuts)
    for _ in range(rng.randint(1, 2)):
        spoil_json(rng.choice(cuts), rng)
    data = "\n".join(json.dumps(cut) for cut in cuts).encode() + b"\n"
    if rng.random() < 0.3:
        data, _ = spoil_bytes(data, rng)
    data, _, packed = maybe_packed(data, None, rng)
    return "cuts.jsonl.gz" if packed else "cuts.jsonl", data


def spoil_json(value, rng):
    """Change, drop or add something at a random place of nested dictionaries and lists."""
    places = list(_places(value))
    holder, key = rng.choice(places)
    change = rng.random()
    if change < 0.6:
        holder[key] = rng.choice(NASTY + PATHS)
    elif change < 0.75:
        del holder[key]
    elif change < 0.85 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif change < 0.95 and isinstance(holder, dict):
        holder[rng.choice(["x", "type", "id", "shape", "width", "sources", "tracks", "custom", "start"])] = rng.choice(
            NASTY
        )
    else:
        holder[key] = {"type": rng.choice(["MixedCut", "MultiCut", "PaddingCut", "Blot"]), "tracks": [holder[key]]}


def _places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


# Words as they stand in real files: with Unicode spaces, signs, fragments, transliteration.
SPOKEN = ["uh", "10\u00a0000", "a\u2009b", "x\u3000", *"<n >mr {lktAb h*A wor- -rd 5% l'été".split(), "\u0661"]
MARKS = ["(%HESITATION)", "<sil>", "<unk>", "(um)", "((", "}", "[noise]", "%uh", "@", "the(2)", "{um", "/"]
STRAY = ["\r", "\0", "\x1c", "\u0085", "\x0b", "\x7f"]
NO_TIMES = ["nan", "inf", "-1", "1_0", "\u0661", "x", "0x1", "1,5", "*", "", "9" * 400]
word = st.sampled_from(SPOKEN)
spoken = st.lists(word, min_size=1, max_size=5)
gap = st.sampled_from([" ", "\t", "  "])


@st.composite
def spoilt(draw, cells):
    """A line of these cells, with one of them changed, missing or too much; or with a stray character."""
    cells = list(cells)
    change = draw(st.sampled_from(["time", "drop", "add", "stray", "bytes"]))
    at = draw(st.integers(0, len(cells) - 1))
    if change == "time":
        cells[at] = draw(st.sampled_from(NO_TIMES))
    elif change == "drop":
        del cells[at]
    elif change == "add":
        cells.insert(at, draw(word))
    line = draw(gap).join(cells).encode()
    if change == "stray":
        inside = draw(st.integers(0, len(line)))
        line = line[:inside] + draw(st.sampled_from(STRAY)).encode() + line[inside:]
    elif change == "bytes":
        line += b"\xff"
    return line


@st.composite
def stm_line(draw):
    """(line, words or None where the line must be named)."""
    start = draw(st.integers(0, 50))
    cells = ["a", "1", "sp\u00a0k", f"{start}.0", f"{start + 1}.5"]
    label = draw(st.sampled_from(["", "<o,f0,male>", "<O>"]))
    words = draw(spoken)
    kind = draw(st.sampled_from(["good", "good", "good", "marks", "empty", "ignored", "spoilt"]))
    if kind == "marks":
        words.insert(draw(st.integers(0, len(words))), draw(st.sampled_from(MARKS)))
    elif kind == "empty":
        words = []
    elif kind == "ignored":
        words = ["IGNORE_TIME_SEGMENT_IN_SCORING"]
    elif kind == "spoilt":
        return draw(spoilt(cells + words)), None
    line = draw(gap).join(cells + [cell for cell in (label, *words) if cell])
    return line.encode(), words if kind == "good" else None


@st.composite
def ctm_line(draw):
    """(line, word or None where it must not become one)."""
    start = draw(st.integers(0, 500)) / 10
    cells = ["a", "1", f"{start}", "0.1", draw(word)]
    cells += draw(st.sampled_from([[], ["0.9"], ["-7.5"], ["NA", "lex"], ["1", "fp", "spk"]]))
    kind = draw(st.sampled_from(["good", "good", "good", "mark", "two", "spoilt"]))
    if kind == "mark":
        cells[4] = draw(st.sampled_from(["(%hesitation)", "<unk>", "((x))", "[noise]", "%um", "(x", "}"]))
    elif kind == "two":
        cells.insert(5, "york")
    elif kind == "spoilt":
        return draw(spoilt(cells)), None
    return draw(gap).join(cells).encode(), cells[4] if kind == "good" else None


CELLS = ["plain", "with, comma", 'he said "yes"', "tab\there", "semi;colon", "a\u2028b", "x\u00a0y", 'a quote"', ""]


@st.composite
def table(draw):
    """(delimiter, bytes, rows): of each row its number and text, the text None where the row must be named."""
    delimiter = draw(st.sampled_from([",", "\t", ";"]))
    quoting = delimiter != "\t"
    lines, rows = [delimiter.join(["id", "audio", "text", "note"]).encode()], []
    for number in range(draw(st.integers(1, 4))):
        text, note = draw(st.sampled_from(CELLS)), draw(st.sampled_from(CELLS))
        if quoting and draw(st.booleans()):
            text += draw(st.sampled_from(["\nsecond line", '\n"quoted"\n', "\n1,2,3,4", "\rcarriage return"]))
        elif not quoting:
            text, note = (cell.replace("\t", " ") for cell in (text, note))
        cells = [f"u{number}", f"{number}.wav", text or "nothing", note]
        if quoting:
            cells = ['"' + cell.replace('"', '""') + '"' if set(cell) & set('",;\r\n') else cell for cell in cells]
        line = delimiter.join(cells).encode()
        kind = draw(st.sampled_from(["good", "good", "good", "cr", "cells", "nul", "bytes", "open"]))
        if kind != "good":
            text = None
            line = f"u{number}{delimiter}{number}.wav{delimiter}bad text{delimiter}x".encode()
        if kind == "cr":
            line = line.replace(b"bad ", b"bad\r")
        elif kind == "cells":
            line += delimiter.encode() if draw(st.booleans()) else b""
            line = line.replace(b"bad text", b"bad" + delimiter.encode() + b"text")
        elif kind == "nul":
            line = line.replace(b"bad", b"b\0d")
        elif kind == "bytes":
            line = line.replace(b"bad", b"b\xffd")
        elif kind == "open":
            line = line.replace(b"bad", b'"bad')
            text = None if quoting else '"bad text'
        lines.append(line)
        rows.append((number, text if text is None else text or "nothing"))
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    bom = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    return delimiter, bom + end.join(lines) + draw(st.sampled_from([b"", end])), rows
