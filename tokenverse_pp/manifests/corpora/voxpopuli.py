"""VoxPopuli: speeches in the European Parliament, 16 languages with transcripts; labelled for asr and lid."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Dict, List, Sequence

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.corpora.languages import folders_of
from tokenverse_pp.manifests.corpora.parts import Part, Say, lhotse_recipe, require
from tokenverse_pp.manifests.corpora.rows import Form, check_table
from tokenverse_pp.manifests.corpora.utterances import write_utterances

SPLITS = ("train", "dev", "test")
FORM = Form(delimiter="|", quoting=True, numbers=("start_time", "end_time"))
LAYOUT = (
    "raw_audios/<language>/<year>/*_<language>.ogg and the transcripts asr_<language>.tsv.gz (lhotse downloads them "
    "where they are missing)"
)


def prepare_voxpopuli(
    corpus_dir: Path,
    output_dir: Path,
    languages: Sequence[str] = (),
    normaliser: str = "words",
    jobs: int = 1,
    say: Say = print,
) -> Dict[str, Path]:
    """``cuts_<split>_<language>.jsonl.gz``: one cut a segment, pointing into the recording of its session.

    Args:
        languages: ISO 639-1 codes; none: all folders of ``raw_audios`` that have transcripts in lhotse's list.

    Raises:
        UserError: where the folder is no VoxPopuli, and where transcripts are neither there nor can be downloaded.
    """
    from lhotse.recipes.voxpopuli import ASR_LANGUAGES
    from lhotse.recipes.voxpopuli import prepare_voxpopuli as recipe

    require(corpus_dir, ["raw_audios/*"], LAYOUT)
    there = sorted(path.name for path in (corpus_dir / "raw_audios").iterdir() if path.name in ASR_LANGUAGES)
    wanted = folders_of(languages, there, f"{corpus_dir}/raw_audios") or there
    if not wanted:
        raise UserError(f"{corpus_dir}/raw_audios: no language with transcripts; expected {LAYOUT}")
    parts: List[Part] = []
    for language in wanted:
        require(corpus_dir, [f"raw_audios/{language}/**/*.ogg"], LAYOUT)
        # lhotse takes the transcripts from its output folder, and downloads them where they are not there.
        with tempfile.TemporaryDirectory() as folder, lhotse_recipe("voxpopuli", corpus_dir, LAYOUT):
            transcripts = corpus_dir / f"asr_{language}.tsv.gz"
            unread: List[Dict[str, Any]] = []
            if transcripts.is_file():
                table = check_table(transcripts, FORM)
                table.write(Path(folder) / transcripts.name)
                unread = table.left_out()
            manifests = recipe(corpus_dir, folder, task="asr", lang=language, num_jobs=jobs)
        # Which split a bad row is of is not known: the first lists them.
        parts += [
            Part(f"{split}_{language}", **manifests[split], language=language, unread=() if i else unread)
            for i, split in enumerate(SPLITS)
        ]
    return write_utterances(parts, output_dir, "voxpopuli", normaliser, jobs, say)
