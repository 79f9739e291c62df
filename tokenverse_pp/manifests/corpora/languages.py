"""Languages as the corpora name them -> ISO 639-1 codes (639-3 where a language has no code of two letters)."""

from __future__ import annotations

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
"""Locales of Common Voice that are not their language plus a country: zh-HK is Cantonese."""


def common_voice_code(locale: str) -> str:
    """The language of a Common Voice locale: what stands before the first hyphen, but for `COMMON_VOICE`.

    >>> common_voice_code("sv-SE"), common_voice_code("zh-CN"), common_voice_code("zh-HK"), common_voice_code("kab")
    ('sv', 'zh', 'yue', 'kab')
    """
    return COMMON_VOICE.get(locale, locale.split("-")[0].lower())
