"""Add the written texts to manifests of this recipe that were prepared without them, also to those of stored features.

python recipes/human_speech/written.py data/human_speech/features/cuts_*.jsonl.gz \
    --output-dir data/human_speech/written --packages-dir data/human_speech/packages --corpora fillets,tuxpaint

If all turns of a cut have one, they get `custom["written"]`, and the cut the task `punct`. Audio and features are kept.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import click
from corpus import packages
from corpus.prepare import CORPORA, TUXPAINT_LANGUAGES, read_all_clips, unpack

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.data.manifests import read_rows, writing_rows


def written_texts(packages_dir: Path) -> Dict[str, Tuple[str, str]]:
    """Plain text and written text, by id, of each clip that has a written text."""
    names = packages.package_names()
    files = packages.get_packages(names, packages_dir, packages_dir)
    with tempfile.TemporaryDirectory() as folder:
        roots = unpack(files, Path(folder), lambda line: None)
        clips, _ = read_all_clips(roots, TUXPAINT_LANGUAGES, lambda line: None)
    return {clip.id: (clip.text, clip.written) for clip in clips if clip.written is not None}


def with_written(data: Mapping[str, Any], texts: Mapping[str, Tuple[str, str]]) -> Optional[Dict[str, Any]]:
    """Return a row of a manifest with its written texts; None unless every turn has one."""
    supervisions = []
    for sup in data["supervisions"]:
        clips = sup["custom"].get("clips", ())
        plain, written = texts.get(clips[0], ("", "")) if len(clips) == 1 else ("", "")
        if not written or plain != sup["text"]:
            return None
        supervisions.append({**sup, "custom": {**sup["custom"], "written": written}})
    custom = data["custom"]
    tasks = [*custom["tasks"], *(["punct"] if "punct" not in custom["tasks"] else [])]
    return {**data, "supervisions": supervisions, "custom": {**custom, "tasks": tasks}}


@click.command()
@click.argument("manifests", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output-dir", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to fill.")
@click.option(
    "--packages-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder that holds the Debian packages (packages/ in the folder that prepare.py filled).",
)
@click.option("--corpora", default=",".join(CORPORA), show_default=True, help="Only these get written texts.")
def main(manifests: Sequence[Path], output_dir: Path, packages_dir: Path, corpora: str) -> None:
    """Add the written texts to MANIFESTS that were prepared without them; the copies go to --output-dir."""
    wanted = corpora.split(",")
    unknown = sorted(set(wanted) - set(CORPORA))
    if unknown:
        raise UserError(f"--corpora: expected some of {', '.join(CORPORA)}, found {unknown[0]!r}")
    texts = written_texts(packages_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    for path in manifests:
        counts: Counter = Counter()
        with writing_rows(output_dir / path.name) as writer:
            for row in read_rows(path):
                corpus = row.data["custom"]["corpus"]
                changed = with_written(row.data, texts) if corpus in wanted else None
                counts[corpus, changed is not None] += 1
                writer.write(changed or row.data)
        parts = [f"{c} {counts[c, True]} of {counts[c, True] + counts[c, False]}" for c in CORPORA]
        click.echo(f"{output_dir / path.name}: labelled for punct: {', '.join(parts)} cuts")


if __name__ == "__main__":
    with report_errors():
        main()
