"""Languages as the corpora name them -> ISO 639-1 codes (639-3 where a language has no code of two letters)."""

from __future__ import annotations

from typing import List, Sequence

from tokenverse_pp.errors import UserError
from tokenverse_pp.languages import canonical_tag, matching_languages

MLS = {
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "polish": "pl",
    "portuguese": "pt",
    "spanish": "es",
}
"""The folders ``mls_<name>`` of Multilingual LibriSpeech."""

COMMON_VOICE = {"zh-HK": "yue"}
"""Locales of Common Voice (canonical tags) that are not their language plus a country: zh-HK is Cantonese."""


def common_voice_code(locale: str) -> str:
    """The language of a Common Voice locale, in any spelling: without the region, but for `COMMON_VOICE`.

    >>> common_voice_code("sv-SE"), common_voice_code("zh-CN"), common_voice_code("zh-HK"), common_voice_code("kab")
    ('sv', 'zh', 'yue', 'kab')
    """
    tag = canonical_tag(locale) or locale
    return COMMON_VOICE.get(tag, tag.split("-")[0].lower())


def folders_of(languages: Sequence[str], folders: Sequence[str], where: str) -> List[str]:
    """The language folders of a corpus that codes mean; a code that is no folder's stays as it is.

    Args:
        where: the folder of the corpus, for messages.

    Raises:
        UserError: for a code that may mean several folders.
    """
    found = []
    for code in languages:
        meant = matching_languages(code, folders)
        if len(meant) > 1:
            raise UserError(f"--language {code}: {where} has {' and '.join(meant)}: expected one of them")
        found += meant or [code]
    return list(dict.fromkeys(found))
