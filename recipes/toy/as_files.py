"""Write toy cuts as the files that people have: two corpora, each labelled for something else (docs/tutorial.md).

    python recipes/toy/as_files.py data/toy/cuts_train.jsonl.gz mine

Writes ``sentences/{table.csv,audio/}``: utterances of one turn with their language, entities marked in the text;
``calls/{turns.csv,audio/}``: conversations with speakers, times, endpoints and the language of each turn, no entities.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any, Dict, List, Tuple

import click
from lhotse import SupervisionSegment
from lhotse.cut import Cut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.data.manifests import read_cuts


def with_marks(turn: SupervisionSegment) -> str:
    """The turn's text with ``[..](TYPE)`` around its entities."""
    text = turn.text or ""
    for entity in sorted((turn.custom or {})["entities"], key=lambda e: -e["start"]):
        start, end = entity["start"], entity["end"]
        text = f"{text[:start]}[{text[start:end]}]({entity['type']}){text[end:]}"
    return text


def sentence_row(cut: Cut, audio: str) -> Dict[str, Any]:
    """An utterance of one turn."""
    (turn,) = cut.supervisions
    return {"id": cut.id, "audio": audio, "text": with_marks(turn), "language": turn.language}


def call_rows(cut: Cut, audio: str) -> List[Dict[str, Any]]:
    """A conversation: a row a turn."""
    return [
        {
            "recording": cut.id,
            "audio": audio,
            "start": f"{turn.start:.3f}",
            "end": f"{turn.end:.3f}",
            "speaker": turn.speaker,
            "endpoint": "yes" if (turn.custom or {})["endpoint"] else "no",
            "language": turn.language,
            "text": turn.text,
        }
        for turn in cut.supervisions
    ]


def write_files(manifest: Path, output_dir: Path) -> Dict[str, int]:
    """Write both corpora below ``output_dir`` -> number of recordings of each.

    Raises:
        UserError: for a manifest that gives nothing to one of them.
    """
    corpora: Dict[str, Tuple[str, List[Dict[str, Any]]]] = {"sentences": ("table.csv", []), "calls": ("turns.csv", [])}
    numbers = dict.fromkeys(corpora, 0)
    for name in corpora:
        (output_dir / name / "audio").mkdir(parents=True, exist_ok=True)
    for cut in read_cuts(manifest):
        name = "sentences" if len(cut.supervisions) == 1 else "calls"
        source = Path(cut.recording.sources[0].source)
        shutil.copyfile(source, output_dir / name / "audio" / source.name)
        corpora[name][1].extend(
            [sentence_row(cut, source.name)] if name == "sentences" else call_rows(cut, source.name)
        )
        numbers[name] += 1
    for name, (file, rows) in corpora.items():
        if not rows:
            raise UserError(f"{manifest}: holds no {name}, expected cuts of one turn and cuts of several")
        with open(output_dir / name / file, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return numbers


@click.command(help="Write toy cuts as tables and audio: two corpora, each labelled for something else.")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("output_dir", type=click.Path(path_type=Path, file_okay=False))
def main(manifest: Path, output_dir: Path) -> None:
    """Command line of `write_files`."""
    with report_errors():
        numbers = write_files(manifest, output_dir)
    for name, number in numbers.items():
        click.echo(f"{output_dir / name}: {number} recordings")


if __name__ == "__main__":
    main()
