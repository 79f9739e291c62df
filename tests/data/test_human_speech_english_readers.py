"""The readers of the two English games, on bytes made here."""

import numpy as np
import pytest
import soundfile
from corpus import queen, sky
from corpus.queen_archive import Malformed, QueenArchive, parse_cutaway, parse_dialogue, parse_texts
from corpus.rnc import RncError, canonical_code, unpack
from corpus.sky_archive import HUFFMAN, SkyArchive, huffman_code, section_texts
from game_archives import cutaway, dialogue, hum, jas, mp3, queen_archive, rnc, section, sky_archive, sky_files, speech
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.base.errors import UserError

WORDS = st.text("abcdefgh ,.!?'ABCXYZ-", max_size=60)


@pytest.fixture
def write_queen(tmp_path):
    def write(files, **options):
        path = tmp_path / queen.DATA
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(queen_archive(files, **options))
        return tmp_path

    return write


@pytest.fixture
def write_sky(tmp_path):
    def write(files):
        folder = tmp_path / sky.DATA
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in zip(("sky.dnr", "sky.dsk"), sky_archive(files)):
            (folder / name).write_bytes(data)
        return tmp_path

    return write


class TestQueenArchive:
    def test_files_are_found_by_name(self, write_queen):
        archive = QueenArchive(write_queen({"A.DOG": b"abc", "b.sb": b"", "C.DOG": b"xy"}) / queen.DATA)
        assert archive.names(".DOG") == ["A.DOG", "C.DOG"]
        assert [archive.read(name) for name in ("A.DOG", "B.SB", "C.DOG")] == [b"abc", b"", b"xy"]

    @pytest.mark.parametrize(
        "change, said",
        [
            (lambda data: b"X" + data[1:], "begins with QTBL"),
            (lambda data: data[:9], "begins with QTBL"),
            (lambda data: data[:12] + b"\2" + data[13:], "found 2"),
            (lambda data: data[:30], "table is cut short"),
            (lambda data: data[:-1], "after the end of the file"),
        ],
    )
    def test_damage_is_named(self, write_queen, change, said):
        path = write_queen({"A.DOG": b"abc", "B.SB": b"x"}) / queen.DATA
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(UserError, match=said):
            QueenArchive(path)

    def test_a_missing_archive_is_named(self, tmp_path):
        with pytest.raises(UserError, match=r"queen\.1c: missing"):
            queen.read_scenes(tmp_path, tmp_path / "sounds")


class TestQueenScripts:
    @given(st.dictionaries(st.integers(0, 9), WORDS, max_size=4), st.dictionaries(st.integers(0, 9), WORDS, max_size=4))
    def test_dialogues_keep_every_line(self, player, person):
        found = parse_dialogue(dialogue(7, [[(1, 0), (2, -1)]], player, person, ("Back.", "Again?")))
        assert (found.key, found.player, found.person) == (7, player, person)
        assert (found.again_person, found.again_player) == ("Back.", "Again?")
        assert [(slot.head, slot.target) for slot in found.levels[0]][:2] == [(1, 0), (2, -1)]

    @given(st.lists(st.tuples(st.integers(-4, 9), st.integers(0, 99), WORDS), max_size=5))
    def test_scenes_keep_every_step(self, steps):
        found = parse_cutaway(cutaway(steps))
        assert [step.number for step in found] == list(range(1, len(steps) + 1))
        assert [(max(s.person, 0) if s.person == -1 else s.person, s.room, s.text) for s in found] == [
            (0 if person == -1 else person, room, text) for person, room, text in steps
        ]

    def test_steps_after_an_animation_are_found(self):
        found = parse_cutaway(cutaway([(3, 1, "*"), (4, 1, "Here."), (0, 1, "There.")], animated=[0]))
        assert [(step.person, step.text) for step in found] == [(3, "*"), (4, "Here."), (0, "There.")]

    @pytest.mark.parametrize("parse", [parse_dialogue, parse_cutaway])
    def test_scripts_that_are_cut_short_are_malformed(self, parse):
        whole = dialogue(7, [[(1, 0)]], {0: "Hi."}, {1: "Ho."}) if parse is parse_dialogue else cutaway([(0, 1, "Hi.")])
        for end in range(0, len(whole) - 5, 3):
            with pytest.raises(Malformed):
                parse(whole[:end])

    def test_texts_are_numbered_as_their_sounds(self):
        files = jas({2: "Bob", 3: "Ann"}, ["It's red*03", "It's blue"], {1: "No*01", 40: "Yes"})
        texts = parse_texts(files["QUEEN.JAS"], files["QUEEN2.JAS"])
        assert texts.names == {2: "Bob", 3: "Ann"}
        assert {number: text for number, text in texts.remarks.items() if text} == {
            1: "No*01", 40: "Yes", 41: "It's red*03", 42: "It's blue",
        }  # fmt: skip

    def test_texts_that_are_too_few_are_malformed(self):
        files = jas({1: "Bob"}, ["It's red"], {})
        with pytest.raises(Malformed, match="expected 55"):
            parse_texts(files["QUEEN.JAS"], files["QUEEN2.JAS"][:50])


class TestQueenLines:
    def test_segments_are_numbered_by_marks(self):
        assert queen.segments("*FLWho?*03") == [(2, "Who?")]
        assert queen.segments("One.*01*02Two,*XY00(237,112)three*") == [(1, "One."), (3, "Two,"), (4, "three")]
        assert queen.segments("*") == queen.segments("*01...*02") == []

    @pytest.mark.parametrize(
        "text, last, expected",
        [("Yes.", True, True), ("So...", True, False), ("It's locked", True, None), ('"Kilroy" ', True, None)]
        + [("and then", False, False), ("well,", True, False)],
    )
    def test_an_end_without_a_mark_is_unknown(self, text, last, expected):
        assert queen.endpoint_of(text, last) is expected

    def test_a_dialogue_runs_down_its_tree_and_back(self):
        levels = [
            [(1, 0), (6, 0), (7, 1), (8, -1)],
            [(6, 0), (9, 1)],
        ]
        player = {0: "Hello.", 6: "Six?", 7: "Seven?", 8: "Bye.", 9: "Nine?", 33: "Lost."}
        person = {1: "Hi.", 6: "Six.", 7: "Seven.", 8: "So long.", 9: "Nine."}
        parsed = parse_dialogue(dialogue(7, levels, player, person, ("You again.", "It's me.")))
        runs = [[line.text for line in run] for run in queen.dialogue_runs("BOB2", parsed)]
        assert runs == [
            ["Hello.", "Hi.", "Six?", "Six.", "Nine?", "Nine.", "Seven?", "Seven.", "Bye.", "So long."],
            ["It's me.", "You again."],
            ["Lost."],
        ]
        first = queen.dialogue_runs("BOB2", parsed)[0]
        assert [line.prefix for line in first[:3]] == ["07SSSSJ", "070001P", "070006J"]
        assert {line.speaker for line in first} == {"queen-joe", "queen-bob"}

    def test_a_scene_runs_on_while_its_speakers_are_sure(self):
        names = {3: "Ann", 4: "Guard", 5: "Guard", 6: "ann obj", 7: "Joe King"}
        steps = [
            (3, 1, "A."), (0, 1, "B."), (4, 1, "C."), (5, 1, "D."), (-2, 1, "E."), (3, 1, "F."), (6, 2, "G."),
            (7, 2, "H."), (3, 1, "I."),
        ]  # fmt: skip
        runs = queen.scene_runs("C5A", parse_cutaway(cutaway(steps)), names)
        assert [[line.text for line in run] for run in runs] == [
            ["A.", "B.", "C.", "D."],
            ["E."],
            ["F."],
            ["G.", "H.", "I."],
        ]
        speakers = {line.text: line.speaker for run in runs for line in run}
        assert speakers["C."] != speakers["D."] and speakers["E."] is None
        assert speakers["A."] == speakers["F."] == "queen-ann" and speakers["B."] == speakers["H."] == "queen-joe"
        assert runs[0][2].prefix == "C5A__03"

    def test_groups_of_the_split(self):
        assert queen.scene_group("BOB2") == queen.scene_group("BOB") == "bob"
        assert queen.scene_group("C10A") == queen.scene_group("C10B") != queen.scene_group("C1A")


class TestQueenScenes:
    @pytest.fixture
    def root(self, write_queen):
        sound = mp3(0.5)
        files = {
            "BOB1.DOG": dialogue(
                5, [[(1, 0), (6, -1)]], {0: "Hi.*02You there!*03", 6: "Take 5."}, {1: "What?", 6: "<cough>"}
            ),
            "BAD.DOG": b"short",
            "C5A.CUT": cutaway([(0, 5, "*FLHe's gone.*01Or not"), (1, 5, "No."), (0, 5, "Hi.")]),
            "05SSSSJ1.SB": sound,
            "05SSSSJ2.SB": mp3(0.6),
            "050001P1.SB": mp3(0.7),
            "050006J1.SB": sound,
            "050006P1.SB": sound,
            "C5A__012.SB": mp3(0.8),
            "C5A__013.SB": mp3(0.9),
            "C5A__021.SB": b"",
            "C5A__031.SB": sound,  # the recording of the dialogue's greeting once more
            "JOE00411.SB": mp3(1.0),
            "99SSSSSS.SB": sound,
            **jas({1: "Ann"}, ["It's red"], {1: "No recording of this"}),
        }
        return write_queen(files)

    def test_lines_are_paired_with_their_sounds(self, root, tmp_path):
        scenes, _ = queen.read_scenes(root, tmp_path / "sounds")
        found = {clip.key: clip for scene in scenes for clip in scene.clips.values()}
        assert {key: clip.text for key, clip in found.items()} == {
            "05SSSSJ1.SB": "hi",
            "05SSSSJ2.SB": "you there",
            "050001P1.SB": "what",
            "C5A__012.SB": "he's gone",
            "C5A__013.SB": "or not",
            "JOE00411.SB": "it's red",
        }
        assert [scene.runs for scene in scenes] == [
            [["05SSSSJ1.SB", "05SSSSJ2.SB", "050001P1.SB"]],
            [["C5A__012.SB", "C5A__013.SB"]],
            [["JOE00411.SB"]],
        ]
        assert [found[key].endpoint for key in ("C5A__012.SB", "C5A__013.SB", "050001P1.SB")] == [True, None, True]
        assert found["JOE00411.SB"].group == "" and found["C5A__012.SB"].group == "c5"
        assert soundfile.info(found["JOE00411.SB"].path).samplerate == 11025

    def test_what_is_left_out_is_counted(self, root, tmp_path):
        _, dropped = queen.read_scenes(root, tmp_path / "sounds")
        assert dropped == {
            "scripts that are malformed (DOG)": 1,
            "texts with digits, brackets or signs": 2,
            "recordings that are empty or no MP3": 1,
            "copies of a recording": 1,
            "segments without a recording": 1,
            "recordings without a text (noises, leftovers)": 1,
        }

    def test_an_archive_without_dialogues_is_named(self, write_queen, tmp_path):
        with pytest.raises(UserError, match=r"queen\.1c: no recorded dialogue"):
            queen.read_scenes(write_queen(jas({}, [], {})), tmp_path / "sounds")
        with pytest.raises(UserError, match=r"QUEEN2\.JAS"):
            queen.read_scenes(write_queen({"A.DOG": b""}), tmp_path / "sounds")


PAIR = st.tuples(st.binary(max_size=40), st.integers(1, 400), st.integers(2, 90))


class TestRnc:
    @given(st.lists(st.tuples(st.lists(PAIR, max_size=4), st.binary(max_size=40)), min_size=1, max_size=3))
    def test_what_was_packed_is_unpacked(self, blocks):
        plain = bytearray()
        kept = []
        for pairs, rest in blocks:
            valid = []
            for data, back, count in pairs:
                if back <= len(plain) + len(data):
                    plain += data
                    for _ in range(count):
                        plain.append(plain[-back])
                    valid.append((data, back, count))
            plain += rest
            kept.append((valid, rest))
        assert unpack(rnc(kept, bytes(plain)) + b"behind") == bytes(plain)

    @pytest.mark.parametrize(
        "data",
        [
            b"RNC\x02" + b"\0" * 20,
            b"RNC\x01",
            rnc([((), b"abcdef")], b"abcdef")[:-1],
            rnc([((), b"abcdef")], b"abcdefg"),
            rnc([([(b"a", 3, 2)], b"")], b"aaa"),
        ],
    )
    def test_damage_is_an_error(self, data):
        with pytest.raises(RncError):
            unpack(data)

    def test_short_codes_come_first(self):
        assert canonical_code([2, 0, 1, 2]) == {(1, 0b0): 2, (2, 0b10): 0, (2, 0b11): 3}


class TestSkyTexts:
    def test_the_code_is_complete_and_begins_with_common_letters(self):
        assert sum(2.0**-length for length, _ in HUFFMAN) == 1.0
        assert len(set(HUFFMAN.values())) == len(HUFFMAN) == 123
        assert (HUFFMAN[3, 0b000], HUFFMAN[4, 0b0010], HUFFMAN[4, 0b0011]) == (ord(" "), ord("e"), ord("a"))
        assert huffman_code("»a»bc") == {(1, 0): ord("a"), (2, 0b10): ord("b"), (2, 0b11): ord("c")}

    @given(st.lists(st.text("abcdefgh ,.!?'ABCXYZ-", max_size=70), min_size=1, max_size=70))
    def test_texts_of_all_lengths_are_read(self, texts):
        assert section_texts(section(texts)) == texts

    def test_texts_without_an_end_are_named(self, write_sky):
        data = section(["Foster", "Joey"])
        root = write_sky({60600: data[:-2]})
        with pytest.raises(UserError, match="texts 60600 are damaged"):
            list(SkyArchive(root / sky.DATA).texts(0))


class TestSkyArchive:
    @pytest.mark.parametrize(
        "name, change, said",
        [
            ("sky.dnr", lambda data: data[:-3], "expected 2 entries"),
            ("sky.dnr", lambda data: b"", "entries"),
            ("sky.dsk", lambda data: data[:-1], "after the end"),
        ],
    )
    def test_damage_is_named(self, write_sky, name, change, said):
        folder = write_sky({1: b"abc", 2: b"defg"}) / sky.DATA
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        with pytest.raises(UserError, match=said):
            SkyArchive(folder)

    def test_a_missing_archive_is_named(self, tmp_path):
        with pytest.raises(UserError, match="missing"):
            SkyArchive(tmp_path)

    def test_files_are_found_whatever_their_unit(self, write_sky):
        files = {number: bytes([number]) * number for number in (5, 40, 7)}
        archive = SkyArchive(write_sky(files) / sky.DATA)
        assert {number: archive.read(number) for number in files} == files

    def test_numbers_of_speech(self):
        assert (sky.speech_number(7), sky.speech_number(0x1000), sky.speech_number(0x7001)) == (50007, 50600, 55231)


class TestSkyClips:
    def test_texts_are_paired_with_their_speech(self, write_sky, tmp_path):
        samples = hum(0.5)
        texts = {0: ["Foster", "Hello there.", "Take 5.", "...", "Broken."], 1: ["Not spoken.", "Second part!"]}
        spoken = {number: speech(samples) for number in (1, 2, 3, 0x1001, 0x1009)}
        root = write_sky(sky_files(texts, {**spoken, 4: speech(samples)[:60]}))
        clips, dropped = sky.read_clips(root, tmp_path / "sounds")
        assert {clip.id: clip.text for clip in clips} == {
            "sky-en-50001": "hello there",
            "sky-en-50601": "second part",
        }
        assert dropped == {
            "recordings whose text has no words": 1,
            "texts with digits, brackets or signs": 1,
            "recordings that are not packed as speech is, or damaged": 1,
            "recordings without a text": 1,
        }
        heard, rate = soundfile.read(clips[0].path)
        assert rate == 11025 and np.abs(heard - (samples - 128) / 128).max() < 0.01
        assert clips[0].group != clips[1].group

    def test_an_archive_without_speech_is_named(self, write_sky, tmp_path):
        with pytest.raises(UserError, match=r"sky\.dsk: no speech"):
            sky.read_clips(write_sky({60600: section(["Foster"])}), tmp_path / "sounds")
