"""Lines, fields and numbers of text files that others wrote."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import json_of
from tokenverse_pp.data.lines import fields, number_of, raw_lines, stray_control, text_lines

SPACES = "\u00a0\u2009\u3000\u0085\u001c\u001f\u2028\u2029\u200a\u1680\x0b\x0c"  # where str.split() splits, too
FIELD = st.text(st.sampled_from(f"ab1{SPACES}é़"), min_size=1, max_size=5)
GAP = st.text(" \t", min_size=1, max_size=3)


@given(st.lists(FIELD, max_size=6), st.data())
def test_fields_are_what_spaces_and_tabs_separate(cells, data):
    line = data.draw(st.text(" \t", max_size=2))
    for cell in cells:
        line += cell + data.draw(GAP)
    assert fields(line) == cells
    for count in range(1, len(cells)):
        *first, rest = fields(line, maxsplit=count)
        assert first == cells[:count] and fields(rest) == cells[count:]


@pytest.mark.parametrize("text", ["0", "1.5", "-1", "+.5", "2.", "1e3", "1E-3", "007"])
def test_decimal_numbers(text):
    assert number_of(text) == float(text)


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "nan", "inf", "-Infinity", "1_000", "1,5", "0x10", "\u0661", "１", "1e", ".", "٫5", "1\n"]
)
def test_no_decimal_numbers(text):
    assert number_of(text) is None


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    for name, data in (("a", b"\xef\xbb\xbfx\r\ny\n"), ("a.gz", gzip.compress(b"\xef\xbb\xbfx\ny"))):
        (tmp_path / name).write_bytes(data)
        assert list(text_lines(tmp_path / name)) == [(1, "x"), (2, "y")]


def test_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "a"
    path.write_bytes("a\u2028b\u0085c\x0bd\re\nf".encode())
    assert [number for number, _ in raw_lines(path)] == [1, 2]


def test_errors_name_what_cannot_be_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"fine\n\xff\n")
    with pytest.raises(UserError, match=r"a: cannot read words: line 2: not UTF-8"):
        list(text_lines(path, "words"))
    with pytest.raises(UserError, match=r"none: cannot read words: no such file"):
        list(text_lines(tmp_path / "none", "words"))
    with pytest.raises(UserError, match="x: JSON nested too deeply"):
        json_of("[" * 100_000, "x")
    assert stray_control("a\tb") is None and stray_control("a\0") == "NUL byte (U+0000)"
