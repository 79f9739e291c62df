#!/usr/bin/env python3
"""Write the words of each language with their frequencies, for shallow fusion (docs/language_model.md).

    pip install -e '.[words]'
    python recipes/human_speech/word_lists.py data/words
    python recipes/decode.py ... --beam 16 --lm data/words

Also writes lm.json, with the scale and bonus of RESULTS.md, which are then the defaults.

The frequencies are those of the package wordfreq (Robyn Speer, 3.1.1: Apache licence, its data CC BY-SA 4.0), from
subtitles, news, books and the web until 2021. It has no running text, and none of this recipe's texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Tuple

import click

from tokenverse_pp.base.files import write_json
from tokenverse_pp.base.languages import match_language

LANGUAGES = ("cs", "en", "es", "fr", "it", "nl", "ru")
PER_MILLION = 1e6
FUSION = {"lm_scale": 0.5, "lm_bonus": 2.0}


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--languages", default=",".join(LANGUAGES), show_default=True, help="Codes of languages.")
@click.option("--most", type=click.IntRange(min=1), default=100_000, show_default=True, help="Words of a language.")
def main(folder: Path, languages: str, most: int) -> None:
    """See the module's docstring."""
    folder.mkdir(parents=True, exist_ok=True)
    for code in dict.fromkeys(map(code_of_words, languages.split(","))):
        path = folder / f"{code}.tsv"
        words = frequent_words(code, most)
        text = "".join(f"{word}\t{frequency * PER_MILLION:.4g}\n" for word, frequency in words.items())
        path.write_text(text, encoding="utf-8")
        click.echo(f"{path}: {len(words)} words")
    write_json(folder / "lm.json", FUSION)


def code_of_words(language: str) -> str:
    """The code of a language in wordfreq: ``fr`` for ``fra`` and ``fr-CA``."""
    try:
        from wordfreq import available_languages
    except ImportError:
        raise click.ClickException("wordfreq is missing: pip install -e '.[words]'") from None
    code = match_language(language, available_languages())
    if code is None:
        raise click.ClickException(f"--languages: wordfreq has no words of {language!r}")
    return code


def frequent_words(code: str, most: int) -> Dict[str, float]:
    """The most frequent words of a language with their share of running text; numbers in digits are left out."""
    try:
        from wordfreq import available_languages, get_frequency_dict
    except ImportError:
        raise click.ClickException("wordfreq is missing: pip install -e '.[words]'") from None
    if code not in available_languages():
        raise click.ClickException(f"--languages: wordfreq has no words of {code!r}")
    found: Dict[str, float] = get_frequency_dict(code, wordlist="best")
    first: Tuple[Tuple[str, float], ...] = tuple(found.items())[:most]  # the most frequent ones first
    return {word: x for word, x in first if not any(map(str.isdigit, word)) and len(word.split()) == 1}


if __name__ == "__main__":
    main()
