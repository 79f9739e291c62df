"""`tokenverse-pp manifest label`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Optional

import click

if TYPE_CHECKING:
    from tokenverse_pp.manifests.label import EntityFinder


@click.command()
@click.argument("cuts", type=click.Path(dir_okay=False))
@click.argument("output", type=click.Path(dir_okay=False))
@click.option("--add", help="Tasks to add, e.g. lid,scd. Their labels must be in the cuts (or come from --language).")
@click.option("--drop", help="Tasks to drop, e.g. ner: off the list, and the fields that hold only their labels go.")
@click.option("--only", help="Drop all tasks but these (and asr).")
@click.option("--language", help="Write this code (e.g. fr) into the turns that have no language.")
@click.option("--spacy", "pipeline", help="Label entities with this spaCy pipeline: an installed name, or a folder.")
@click.option(
    "--gazetteer",
    type=click.Path(dir_okay=False),
    help="Label entities with a file of lines 'phrase TAB type [TAB confidence]': longest match, whole words.",
)
@click.option("--match-case", is_flag=True, help="Of the gazetteer: tell Paris from paris.")
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Of entities whose finder gives none: gazetteer lines without one, spaCy's rules.",
)
@click.option("--overwrite", is_flag=True, help="Replace languages and entities that are there already.")
def label(
    cuts: str,
    output: str,
    add: Optional[str],
    drop: Optional[str],
    only: Optional[str],
    language: Optional[str],
    pipeline: Optional[str],
    gazetteer: Optional[str],
    match_case: bool,
    confidence: float,
    overwrite: bool,
) -> None:
    """Change what CUTS are labelled for, and write them to OUTPUT (.jsonl or .jsonl.gz).

    \b
      manifest label a.jsonl.gz b.jsonl.gz --add lid --language fr
      manifest label a.jsonl.gz b.jsonl.gz --only asr,lid
      manifest label a.jsonl.gz b.jsonl.gz --spacy fr_core_news_sm
      manifest label a.jsonl.gz b.jsonl.gz --gazetteer places.tsv

    Entities of spaCy and gazetteers are machine labels, and marked so: each entity has a "source" such as
    machine:spacy/fr_core_news_sm and a "confidence" from 0 to 1, and the cut's custom field label_source says that
    its task ner was labelled by that machine. `manifest stats` counts them apart. A cut that has entities already is
    refused without --overwrite, so that labels of people and of machines never mix unseen.
    """
    from tokenverse_pp.errors import UserError
    from tokenverse_pp.manifests.label import LabelChange, label_rows
    from tokenverse_pp.manifests.progress import reading_bar
    from tokenverse_pp.manifests.rows import read_rows, writing_rows

    change = LabelChange(names(only) if only else None, names(drop), names(add), language, overwrite)
    finder = _finder(pipeline, gazetteer, match_case, confidence)
    if finder is None and change == LabelChange(overwrite=overwrite):
        raise UserError("nothing to do: expected --add, --drop, --only, --language, --spacy or --gazetteer")
    with writing_rows(output) as writer, reading_bar([cuts], "label") as bar:
        for data in label_rows(read_rows(cuts, bar), change, finder):
            writer.write(data)
    click.echo(f"{writer.count} cuts: {output}")


def names(text: Optional[str]) -> tuple[str, ...]:
    """``asr,lid`` as a tuple."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _finder(
    pipeline: Optional[str], gazetteer: Optional[str], match_case: bool, confidence: float
) -> Optional[EntityFinder]:
    from tokenverse_pp.errors import UserError
    from tokenverse_pp.manifests.gazetteer import read_gazetteer
    from tokenverse_pp.manifests.label import GazetteerEntities

    if pipeline and gazetteer:
        raise UserError("--spacy and --gazetteer: expected one of them; a cut has one maker of its entities")
    if pipeline:
        from tokenverse_pp.manifests.spacy_entities import SpacyEntities

        return SpacyEntities(pipeline, confidence)
    if gazetteer:
        return GazetteerEntities(read_gazetteer(gazetteer, match_case, confidence), Path(gazetteer).name)
    return None
