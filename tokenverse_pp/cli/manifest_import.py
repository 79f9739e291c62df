"""`tokenverse-pp manifest import`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import click

ANY = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(*decorators: Decorator) -> Decorator:
    """Several decorators as one."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


TURNS = together(
    click.option("--table", type=ANY, multiple=True, help="CSV, TSV or JSONL, one turn a row; may be given again."),
    click.option("--kaldi", type=ANY, help="Kaldi data folder."),
    click.option("--hf", type=ANY, help="Hugging Face datasets folder (save_to_disk, audiofolder, parquet)."),
    click.option("--hf-split", help="Its split, where there are several."),
    click.option("--stm", type=ANY, help="STM file, or a folder of them."),
    click.option("--subtitles", type=ANY, help="SRT or WebVTT file named like its recording, or a folder of them."),
    click.option("--transcripts", type=ANY, help="JSON of `transcribe`: a file, JSON lines, or a folder of them."),
    click.option(
        "--repeated-captions",
        "repeats",
        type=click.Choice(["auto", "drop", "keep"]),
        default="auto",
        show_default=True,
        help="Cues and lines that repeat the cue before: auto drops them in live captions that echo or roll.",
    ),
    click.option("--rttm", type=ANY, help="Alone: the turns. Beside another source: who speaks in its turns."),
    click.option("--ctm", type=ANY, help="Words with times, for turns without text. Alone: turns made of them."),
    click.option(
        "--nist-notation",
        type=click.Choice(["refuse", "resolve", "keep"]),
        default="refuse",
        show_default=True,
        help="Marks in STM, CTM and RTTM such as { uh / um }, (%HESITATION), <unk>: refuse such turns, resolve the "
        "marks (first alternative, no sounds), or keep them as words.",
    ),
    click.option("--pause", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Seconds; --ctm alone."),
)
ENTITIES = together(
    click.option("--brat", type=ANY, help="Folder of BRAT documents NAME.txt + NAME.ann."),
    click.option("--conll", type=ANY, help="CoNLL file or folder: token .. BIO tag, a sentence a row."),
    click.option(
        "--discontinuous",
        type=click.Choice(["refuse", "cover", "drop"]),
        default="refuse",
        show_default=True,
        help="BRAT entities in several pieces: refuse the row, cover all from first to last, drop the entity.",
    ),
    click.option("--inline-entities", "inline", type=click.Choice(["brackets", "tags"]), help="Marks in the text."),
    click.option("--widen-entities", "widen", is_flag=True, help="Entities that are a part of a word take all of it."),
)
AUDIO = together(
    click.option("--recordings", type=ANY, help="Table (recording, audio, language, ..) or wav.scp: what audio it is."),
    click.option("--audio-dir", type=ANY, help="Paths begin here, and may not lead out. Default: the data's folder."),
    click.option("--audio-out", type=ANY, help="Folder to make for audio that must be written. Default: OUTPUT_audio."),
    click.option("--any-rate", is_flag=True, help="Leave audio that is not 16 kHz as it is; default: write it anew."),
    click.option("--allow-pipes", is_flag=True, help="Run a wav.scp's commands (later: --allow-commands)."),
)
FIELDS = together(
    click.option("--column", "columns", multiple=True, metavar="FIELD=COLUMN", help="Which column holds a field."),
    click.option("--set", "constants", multiple=True, metavar="FIELD=VALUE", help="A field of rows that lack it."),
    click.option("--times", type=click.Choice(["s", "ms"]), default="s", show_default=True, help="Unit in tables."),
    click.option("--delimiter", help="Of tables that are not named .csv or .tsv, such as ';'."),
    click.option("--tasks", help="Tasks that all rows are labelled for, e.g. asr,lid. Default: by the fields."),
    click.option("--normaliser", default="keep", show_default=True, help="Text normaliser: keep, words, cased, none."),
    click.option(
        "--one-cut-per",
        type=click.Choice(["row", "recording"]),
        default="row",
        show_default=True,
        help="Make a cut of each row, or one of all rows of a recording.",
    ),
)
BAD_ROWS = together(
    click.option("--skip-bad", is_flag=True, help="Write the rest where rows cannot be mapped."),
    click.option("--rejected", type=FILE, help="Write the rows that cannot be mapped to this TSV file."),
)


@click.command("import")
@click.argument("output", type=FILE)
@TURNS
@ENTITIES
@AUDIO
@FIELDS
@BAD_ROWS
def import_corpus(output: Path, **given: Any) -> None:
    """Turn tables and annotation files into labelled cuts, written to OUTPUT (.jsonl or .jsonl.gz).

    One source gives the turns (--table, --kaldi, --hf, --stm, --subtitles, --transcripts, or --rttm, or --ctm); others
    may add what it lacks: speakers (--rttm), words (--ctm), entities (--brat, --conll), audio (--recordings).

    \b
    A table with columns audio, text, language:
      tokenverse-pp manifest import cuts.jsonl.gz --table T.csv --audio-dir AUDIO
    Other names of columns, one language for all, entities marked in the text:
      ... --table T.tsv --column audio=path --column text=sentence --set language=fr \\
          --inline-entities brackets        # [Paris](LOC)
    Meetings: audio table, text from STM, speakers from RTTM, entities from BRAT:
      ... --recordings A.csv --stm STM/ --rttm RTTM/ --brat BRAT/ --one-cut-per recording

    \b
    Fields: id, audio (path), recording (name), channel (1 or A is the first, 3 or C the third),
    start, end, duration, text, speaker, language, entities, endpoint, tasks, custom.NAME.
    A column with a field's name is that field. An empty cell is missing: the cut is then not
    labelled for the task of that field. No entity is [] (or a marked text without marks).
    Tasks by fields: asr text, scd speaker, endp endpoint, ner entities, lid language.

    Rows that cannot be mapped are listed with file and line, and nothing is written unless --skip-bad.
    """
    from tokenverse_pp.data.importing.run import import_manifest

    import_manifest(output, options_of(given), say=click.echo)


def options_of(given: Dict[str, Any]) -> Any:
    """The command line's options, checked, as `ImportOptions`."""
    from tokenverse_pp.base.errors import UserError
    from tokenverse_pp.data.dataset import SAMPLING_RATE
    from tokenverse_pp.data.importing.fields import TEXT_NORMALISERS, FieldMap, constants_of
    from tokenverse_pp.data.importing.sources import ImportOptions

    normaliser = given.pop("normaliser")
    if normaliser not in TEXT_NORMALISERS:
        raise UserError(f"--normaliser {normaliser}: expected one of {', '.join(TEXT_NORMALISERS)}")
    columns = pairs(given.pop("columns"), "--column")
    constants = constants_of(pairs(given.pop("constants"), "--set"), given.pop("tasks"))
    fields = FieldMap(columns, 0.001 if given.pop("times") == "ms" else 1.0)
    return ImportOptions(
        fields=fields,
        constants=constants,
        normaliser=normaliser,
        per=given.pop("one_cut_per"),
        sampling_rate=None if given.pop("any_rate") else SAMPLING_RATE,
        **given,
    )


def pairs(values: Tuple[str, ...], option: str) -> Dict[str, str]:
    """``FIELD=VALUE`` options as a dictionary; the field is known, and given once."""
    from tokenverse_pp.base.errors import UserError
    from tokenverse_pp.data.importing.fields import check_field

    found: Dict[str, str] = {}
    for value in values:
        name, sign, rest = value.partition("=")
        if not sign or name in found:
            raise UserError(f"{option} {value}: expected FIELD=..., each field once")
        check_field(name, option)
        found[name] = rest
    return found
