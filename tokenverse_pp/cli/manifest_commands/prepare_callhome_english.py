"""`tokenverse-pp manifest prepare callhome-english`."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click

from tokenverse_pp.cli.manifest_commands.prepare_options import (
    channels_option,
    common,
    names_option,
    transcripts_option,
    window_options,
)
from tokenverse_pp.manifests.conversations import ConversationOptions


@click.command("callhome-english")
@common
@transcripts_option
@channels_option
@names_option
@window_options
def callhome_english(
    corpus_dir: Path,
    output_dir: Path,
    normaliser: str,
    jobs: int,
    transcripts: Optional[Path],
    channels: str,
    names: bool,
    options: ConversationOptions,
) -> None:
    """CALLHOME American English: asr, scd, endp and lid, telephone calls within families.

    CORPUS_DIR holds LDC97S42 (speech) and LDC97T14 (transcripts), or is LDC97S42 and --transcripts is LDC97T14. Calls
    are written as 16 kHz FLAC in OUT/audio; compressed SPHERE files need sph2pipe for that (lhotse install-sph2pipe).
    Written: OUT/cuts_{train,dev,test}.jsonl.gz. A window never holds a turn whose words are not known ((( )), speech in
    another language); OUT/left_out.jsonl lists them.
    """
    from tokenverse_pp.manifests.corpora.telephone import prepare_callhome_english

    prepare_callhome_english(
        corpus_dir, output_dir, transcripts, channels, names, options, normaliser, jobs, say=click.echo
    )
