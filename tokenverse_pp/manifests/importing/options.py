"""What to import, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Optional, Tuple

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.importing.fields import FieldMap
from tokenverse_pp.manifests.importing.notation import REFUSE
from tokenverse_pp.manifests.importing.texts import AS_IT_IS

ROW, RECORDING = "row", "recording"
TURN_SOURCES = ("table", "kaldi", "hf", "stm", "subtitles", "transcripts")


@dataclass(frozen=True)
class ImportOptions:
    """The options of `tokenverse-pp manifest import`, which has them documented.

    Exactly one of `TURN_SOURCES` gives the turns; without any, ``rttm`` does, or else ``ctm``.

    Args:
        constants: values of fields of rows that lack them.
        nist_notation: one of `notation.NOTATIONS`.
        per: one cut per ``row`` or per ``recording``.
        discontinuous: what becomes of entities of BRAT in several pieces: ``refuse``, ``cover`` or ``drop``.
        pause: seconds without a word after which a new turn begins, where words alone are given.
        repeats: what to do with words that live captions repeat: see `read_subtitles`.
    """

    table: Tuple[Path, ...] = ()
    kaldi: Optional[Path] = None
    hf: Optional[Path] = None
    stm: Optional[Path] = None
    subtitles: Optional[Path] = None
    transcripts: Optional[Path] = None
    rttm: Optional[Path] = None
    ctm: Optional[Path] = None
    recordings: Optional[Path] = None
    brat: Optional[Path] = None
    conll: Optional[Path] = None
    audio_dir: Optional[Path] = None
    audio_out: Optional[Path] = None
    hf_split: Optional[str] = None
    fields: FieldMap = field(default_factory=FieldMap)
    constants: Mapping[str, Any] = field(default_factory=dict)
    delimiter: Optional[str] = None
    inline: Optional[str] = None
    nist_notation: str = REFUSE
    normaliser: str = AS_IT_IS
    widen: bool = False
    discontinuous: str = REFUSE
    per: str = ROW
    pause: float = 1.0
    repeats: str = "auto"
    sampling_rate: Optional[int] = 16000
    allow_pipes: bool = False
    skip_bad: bool = False
    rejected: Optional[Path] = None

    @property
    def turns(self) -> str:
        """The option that gives the turns.

        Raises:
            UserError: where there is none, or more than one.
        """
        given = [name for name in TURN_SOURCES if getattr(self, name)]
        if len(given) > 1:
            raise UserError(
                f"--{given[0]} and --{given[1]} both give turns: expected one of them "
                "(--recordings takes a table or a wav.scp that only says which audio there is)"
            )
        given = given or [name for name in ("rttm", "ctm") if getattr(self, name)]
        if not given:
            raise UserError(f"nothing to import: expected one of --{', --'.join(TURN_SOURCES)}, --rttm, --ctm")
        return given[0]

    @property
    def source(self) -> Path:
        """The file or folder that gives the turns, for messages."""
        path = getattr(self, self.turns)
        return path[0] if isinstance(path, tuple) else path

    @property
    def folder(self) -> Path:
        """Where relative paths of audio begin: --audio-dir, or else the folder of what names the audio."""
        if self.audio_dir is not None:
            return self.audio_dir
        for path in (self.recordings, *self.table[:1]):
            if path is not None:
                return path.parent
        for path in (self.kaldi, self.hf, self.stm, self.subtitles, self.transcripts, self.rttm, self.ctm):
            if path is not None:
                return path if path.is_dir() else path.parent
        return Path()
