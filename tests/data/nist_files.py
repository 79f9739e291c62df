"""Generated NIST, Kaldi and table files, each with what is right."""

from hypothesis import strategies as st

# Words as they stand in real files: with Unicode spaces, signs, fragments, transliteration.
WORDS = ["uh", "10\u00a0000", "a\u2009b", "x\u3000", *"<n >mr {lktAb h*A wor- -rd 5% l'été".split(), "\u0661"]
MARKS = ["(%HESITATION)", "<sil>", "<unk>", "(um)", "((", "}", "[noise]", "%uh", "@", "the(2)", "{um", "/"]
STRAY = ["\r", "\0", "\x1c", "\u0085", "\x0b", "\x7f"]
NO_TIMES = ["nan", "inf", "-1", "1_0", "\u0661", "x", "0x1", "1,5", "*", "", "9" * 400]
word = st.sampled_from(WORDS)
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
