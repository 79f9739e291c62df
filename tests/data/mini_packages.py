"""Miniature Debian packages with tones for speech, laid out as the real ones; built by dpkg-deb."""

import gzip
from pathlib import Path

import av
import numpy as np
import soundfile
from corpus.packages import ASTERISK_LANGUAGES, FILLETS_LANGUAGES, package_names
from scripts import build_package

WORDS = "alder birch cedar doubt ember flint grove haste ivory jolly knoll lemon maple novel olive piano".split()
PROMPTS = {
    "en": {"digits/1": "one", "digits/2": "two", "letters/q": "q", "digits/day-0": "Sunday", "digits/mon-3": "April"},
    "es": {"digits/1": "uno", "digits/2": "dos", "letters/q": "q", "digits/day-0": "Domingo"},
    "fr": {"digits/1": "un", "digits/2": "deux", "letters/q": "q", "digits/day-0": "dimanche"},
    "it": {"digits/1": "uno", "digits/2": "due", "letters/q": "q", "digits/day-0": "Domenica"},
    "ru": {"digits/1": "один", "digits/2": "два", "letters/q": "кью", "digits/day-0": "воскресенье"},
}
PRESS = {
    "en": "Press 1 for",
    "es": "Marque 1 para",
    "fr": "Appuyez sur 1 pour",
    "it": "Premere 1 per",
    "ru": "Нажмите 1 для",
}


def tone(seconds: float, pitch: float = 220.0, rate: int = 16000) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write_ogg(path: Path, seconds: float, pitch: float = 220.0, rate: int = 22050) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), tone(seconds, pitch, rate), rate, format="OGG", subtype="VORBIS")


def write_g722(path: Path, seconds: float, pitch: float = 220.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16000)
        stream.layout = "mono"
        samples = (tone(seconds, pitch) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 16000
        for packet in list(stream.encode(frame)) + list(stream.encode(None)):
            container.mux(packet)


def sentence(seed: str, length: int = 5) -> str:
    """A sentence of words from the list that hardly another seed shares."""
    rng = np.random.default_rng(abs(int.from_bytes(seed.encode(), "little")) % 2**63)
    return " ".join(
        f"{WORDS[i]}{''.join(rng.choice(list('bdgklmnprstv'), 3))}" for i in rng.integers(0, len(WORDS), length)
    )


def write_fillets_texts(root: Path, levels: int = 9, lines: int = 4) -> None:
    for level in range(levels):
        folder = root / f"usr/share/games/fillets-ng/script/level{level:02d}"
        folder.mkdir(parents=True)
        for language in FILLETS_LANGUAGES:
            entries = []
            for line in range(lines):
                font = ("font_small", "font_big")[line % 2]
                text = f"{sentence(f'{language}{level}{line}').capitalize()}{('.', '...')[line == 2]}"
                entries.append(f'dialogId("l-{line}", "{font}", "english")\ndialogStr("{text}")\n')
            (folder / f"dialogs_{language}.lua").write_text("\n".join(entries))
        (folder / "code.lua").write_text('addm(1, "l-0")\naddv(2, "l-1")\nelse\naddm(3, "l-2")\n')


def write_fillets_sounds(root: Path, language: str, levels: int = 9, lines: int = 4) -> None:
    for level in range(levels):
        for line in range(lines):
            path = root / f"usr/share/games/fillets-ng/sound/level{level:02d}/{language}/l-{line}.ogg"
            write_ogg(path, 1.0 + 0.1 * line, 180 + 60 * (line % 2))


def asterisk_texts(language: str) -> dict:
    texts = {f"say-{n}": sentence(f"{language}{n}") for n in range(9)}
    texts.update({f"press-{n}": f"{PRESS[language]} {sentence(f'{language}press{n}')}." for n in range(9)})
    return {**texts, **PROMPTS[language], "silence/1": "(1 second of silence)", "beep": "[a beep]"}


def write_packages(folder: Path, work: Path) -> None:
    """Writes every package that the corpus needs into `folder`."""
    roots = {name: work / name for name in package_names()}
    for name, root in roots.items():
        (root / f"usr/share/doc/{name}").mkdir(parents=True)
        (root / f"usr/share/doc/{name}/copyright").write_text("License: test")
    write_fillets_texts(roots["fillets-ng-data"])
    for language in FILLETS_LANGUAGES:
        write_fillets_sounds(roots[f"fillets-ng-data-{language}"], language)
    for language in ASTERISK_LANGUAGES:
        name = f"asterisk-core-sounds-{language}"
        texts = asterisk_texts(language)
        lines = "; comment\n" + "".join(f"{key}: {text}\n" for key, text in texts.items())
        doc = roots[name] / f"usr/share/doc/{name}/core-sounds-{language}.txt.gz"
        doc.write_bytes(gzip.compress(lines.encode("utf-8")))
        for key, text in texts.items():
            path = roots[f"{name}-g722"] / f"usr/share/asterisk/sounds/{language}_XX_f_Voice/{key}.g722"
            write_g722(path, 0.2 + 0.04 * len(text))
    stamps = roots["tuxpaint-stamps-default"] / "usr/share/tuxpaint/stamps/animals"
    for number in range(9):
        stamps.mkdir(parents=True, exist_ok=True)
        texts = [f"{lang}.utf8={sentence(f'tux{lang}{number}').capitalize()}." for lang in ("es", "fr", "ru")]
        (stamps / f"a{number}.txt").write_text("A thing.\n" + "\n".join(texts))
        for lang in ("es", "fr", "ru"):
            write_ogg(stamps / f"a{number}_desc_{lang}.ogg", 1.1, 200 + number)
    folder.mkdir(parents=True)
    for name, root in roots.items():
        build_package(root, folder, name)
