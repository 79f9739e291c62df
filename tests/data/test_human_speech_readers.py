"""What is read from the packages' text files, and decoding."""

import gzip

import numpy as np
import pytest
import soundfile
from corpus import asterisk, fillets, tuxpaint
from corpus.clips import Clip, find_outliers
from corpus.render import change_speed, decode, trim_silence, write_flac
from mini_packages import tone, write_g722, write_ogg

from tokenverse_pp.base.errors import UserError

DIALOGS = r"""
dialogId("a-m-one", "font_small", "English, (a) \"b\"")
dialogStr("Zeg \"ja\"...")

dialogId("a-v-two", "font_big", "english")
dialogStr("Eerste deel"
    .. " en tweede.")
dialogId("a-x-noise", "", "")
dialogStr("")
dialogId("a-v-alt0", "font_big", "e")
dialogStr("Nul!")
dialogId("a-v-alt1", "font_big", "e")
dialogStr("Een!")
"""

CODE = """
-- addm(1, "a-v-two")
if random(2) == 0 then
    addm(20 + random(30), "a-m-one")
    addv(5, "a-v-two")
elseif x then
    addv(9, "a-v-alt"..random(2))
    model:talk("a-unknown")
end
"""


def test_dialogs_keep_id_font_and_text():
    lines = fillets.parse_dialogs(DIALOGS)
    assert [(line.id, line.font, line.text) for line in lines] == [
        ("a-m-one", "font_small", 'Zeg "ja"...'),
        ("a-v-two", "font_big", "Eerste deel en tweede."),
        ("a-v-alt0", "font_big", "Nul!"),
        ("a-v-alt1", "font_big", "Een!"),
    ]


def test_runs_follow_the_script_and_end_at_another_branch():
    known = [line.id for line in fillets.parse_dialogs(DIALOGS)]
    assert fillets.parse_runs(CODE, known) == [[["a-m-one"], ["a-v-two"]], [["a-v-alt0", "a-v-alt1"]]]


@pytest.mark.parametrize(
    "text, expected",
    [("Ja.", True), ("Wat?!", True), ('Zeg "nee!"', True), ("Nou...", False), ("Nou…", False)]
    + [("Als je dit,", False), ("Dus:", False), ("En dan -", False), ("Zonder punt", False), ("(Ja.)", True)],
)
def test_endpoint_is_the_end_of_a_sentence(text, expected):
    assert fillets.is_endpoint(text) is expected


def test_minor_parts_are_speakers_of_one_level():
    assert fillets.speaker_of("nl", "cave", "font_small") == "fillets-nl-small"
    assert fillets.speaker_of("nl", "cave", "font_crab") == "fillets-nl-cave-crab"
    assert fillets.speaker_of("nl", "cave", "font_both") is None is fillets.speaker_of("nl", "cave", "")


def test_level_leaves_out_what_nobody_recorded_and_digits(tmp_path):
    script = tmp_path / "script/cave"
    script.mkdir(parents=True)
    text = 'dialogId("{0}", "font_big", "")\ndialogStr("{1}")\n'
    lines = [("a", "Ja, hoor."), ("b", "Nee."), ("c", "Kamer 7."), ("d", "[!]")]
    (script / "dialogs_nl.lua").write_text("".join(text.format(*line) for line in lines))
    for name in "acd":
        write_ogg(tmp_path / f"sound/cave/nl/{name}.ogg", 0.3)
    level = fillets.read_level(script, tmp_path / "sound", "nl")
    assert {key: (clip.text, clip.endpoint) for key, clip in level.clips.items()} == {"a": ("ja hoor", True)}
    assert fillets.read_level(script, tmp_path / "sound", "cs") is None


def test_prompts_by_key_without_comments_and_clashes():
    source = "\ufeff; note\na/B: One: two.\nempty:\nx: 1\nx: 2\ndigits/0: cero\ndigits/0: diez\n"
    assert asterisk.parse_texts(source, "es") == {"a/b": "One: two.", "digits/0": "cero", "digits/10": "diez"}


@pytest.mark.parametrize(
    "key, text, language",
    [
        ("silence/1", "(1 second of silence)", "en"),
        ("beeperr", "[this is an error beep tone]", "en"),
        ("spy-iax2", 'IAX (note: does not say "2")', "en"),
        ("x", "Digitare * e #", "it"),
        ("x", "La conferenza ? piena.", "it"),
        ("x", "il tempo sar? esattamente..", "it"),
        ("x", "eliminato vm-then-pound: poi premere", "it"),
        ("x", "dial 500 now", "en"),
        ("x", "3D audio enabled", "en"),
    ],
)
def test_prompts_that_are_unsure_are_left_out(key, text, language):
    assert asterisk.words_of(key, text, language) is None


def test_prompts_keep_questions_and_signs_beside_their_name():
    assert [w for w, _ in asterisk.words_of("x", "Login incorrect. Mailbox?", "en")] == [
        "login",
        "incorrect",
        "mailbox",
    ]
    assert asterisk.words_of("letters/dash", "dash [-]", "en") == [("dash", None)]
    assert asterisk.words_of("digits/day-0", "Sunday", "en") == [("sunday", "WEEKDAY")]


def test_prompt_clips_name_the_voice(tmp_path):
    doc = tmp_path / "t/usr/share/doc/asterisk-core-sounds-en"
    doc.mkdir(parents=True)
    (doc / "core-sounds-en.txt.gz").write_bytes(gzip.compress(b"digits/1: one\nhi: Press 1 now.\nno-sound: x y\n"))
    for key in ("digits/1", "hi", "no-text"):
        write_g722(tmp_path / f"s/usr/share/asterisk/sounds/en_US_f_Ann/{key}.g722", 0.3)
    clips, left_out = asterisk.read_clips(tmp_path / "t", tmp_path / "s", "en")
    assert left_out == 1
    assert [(c.key, c.text, c.closed, c.speaker, c.entities) for c in clips] == [
        ("digits/1", "one", True, "asterisk-ann", ((0, 3, "NUM"),)),
        ("hi", "press one now", False, "asterisk-ann", ((6, 9, "NUM"),)),
    ]


def test_stamps_take_one_of_copies_and_no_amounts(tmp_path):
    folder = tmp_path / "usr/share/tuxpaint/stamps/a"
    folder.mkdir(parents=True)
    for name, text in (("x", "Un perro."), ("x_mirror", "Un perro."), ("coin", "Una moneda (0,5)."), ("y", "Sí.")):
        (folder / f"{name}.txt").write_text(f"English\nes_MX.utf8=no\nes.utf8={text}\n", encoding="utf-8")
        write_ogg(folder / f"{name}_desc_es.ogg", 0.3 if name[0] == "x" else 0.4)
    first = (folder / "x_desc_es.ogg").read_bytes()
    (folder / "x_mirror_desc_es.ogg").write_bytes(first)
    clips = tuxpaint.read_clips(tmp_path, "es")
    assert [(clip.key, clip.text) for clip in clips] == [("a/x", "un perro"), ("a/y", "sí")]


def test_decoding_gives_16_khz_mono(tmp_path):
    write_ogg(tmp_path / "a.ogg", 1.0, pitch=440, rate=44100)
    write_g722(tmp_path / "b.g722", 1.0, pitch=440)
    soundfile.write(str(tmp_path / "c.wav"), np.stack([tone(1.0, 440)] * 2, axis=1), 16000)
    for name in ("a.ogg", "b.g722", "c.wav"):
        samples = decode(str(tmp_path / name))
        assert samples.dtype == np.float32 and abs(len(samples) - 16000) < 500
        peak = np.abs(np.fft.rfft(samples)).argmax() * 16000 / len(samples)
        assert abs(peak - 440) < 5


@pytest.mark.parametrize(
    "name, keep", [("a.ogg", 0.6), ("a.ogg", 0.97), ("a.ogg", 0.0), ("b.wav", 0.0), ("c.g722", 0.0)]
)
def test_damaged_audio_is_named(tmp_path, name, keep):
    path = tmp_path / name
    if name == "a.ogg":
        write_ogg(path, 2.0)
    else:
        path.write_bytes(b"x")
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match=name):
        decode(str(path))


def test_missing_audio_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.ogg.*missing"):
        decode(str(tmp_path / "nothing.ogg"))


def test_trimming_keeps_the_sound_and_a_margin():
    silence = np.zeros(8000, np.float32)
    samples = trim_silence(np.concatenate([silence, tone(1.0), silence]))
    assert 16000 + 2 * 1280 - 320 <= len(samples) <= 16000 + 2 * 1280 + 320
    assert np.array_equal(trim_silence(silence), silence)


def test_speed_changes_length_and_pitch():
    faster = change_speed(tone(1.0, 400), 1.1)
    assert abs(len(faster) - 16000 / 1.1) < 2
    peak = np.abs(np.fft.rfft(faster)).argmax() * 16000 / len(faster)
    assert abs(peak - 440) < 3


def test_flac_is_clipped_not_wrapped(tmp_path):
    write_flac(tmp_path / "x/y.flac", np.array([0.0, 1.5, -1.5], np.float32))
    samples, rate = soundfile.read(str(tmp_path / "x/y.flac"))
    assert rate == 16000 and samples[1] > 0.99 and samples[2] < -0.99
    assert [file.name for file in (tmp_path / "x").iterdir()] == ["y.flac"]


def test_outliers_are_clips_whose_length_cannot_be():
    texts = {f"c{i}": "a text of twenty chr" for i in range(9)}
    clips = [Clip(name, "x", "nl", "s", "p", text, name) for name, text in texts.items()]
    durations = dict.fromkeys(texts, 2.0)
    durations.update(c0=0.0, c1=0.5, c2=9.0, c3=3.0)
    assert find_outliers(clips, durations) == {"c0": "empty", "c1": "too fast", "c2": "too slow"}
