"""`tokenverse-pp manifest import`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Tuple

import click

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli.options import options_from, overwrite_option, refuse_existing, together
from tokenverse_pp.data.dataset import SAMPLING_RATE
from tokenverse_pp.data.importing.fields import TEXT_NORMALISERS, FieldMap, check_field, constants_of
from tokenverse_pp.data.importing.sources import ImportOptions
from tokenverse_pp.data.normalise import check_written

FILE = click.Path(path_type=Path, dir_okay=False)
# Options in the order of `--help`: the turns, entities, audio, fields, and rows that cannot be mapped.
OPTIONS = together(
    options_from(
        ImportOptions,
        *("table", "kaldi", "hf", "hf_config", "hf_split", "stm", "subtitles", "transcripts", "repeats", "rttm", "ctm"),
        *("nist_notation", "pause", "brat", "conll", "discontinuous", "inline", "widen"),
        *("recordings", "audio_dir", "audio_out"),
        repeats={"option": "--repeated-captions"},
        pause={"type": click.FloatRange(min=0)},
        inline={"option": "--inline-entities"},
        widen={"option": "--widen-entities"},
    ),
    click.option("--any-rate", is_flag=True, help="Keep audio at other rates; default: convert it to 16 kHz."),
    options_from(ImportOptions, "allow_pipes"),
    click.option("--column", "columns", multiple=True, metavar="FIELD=COLUMN", help="Column of a field."),
    click.option("--set", "constants", multiple=True, metavar="FIELD=VALUE", help="Value for rows without the field."),
    click.option(
        "--times", type=click.Choice(["s", "ms"]), default="s", show_default=True, help="Unit of times in tables."
    ),
    options_from(ImportOptions, "delimiter"),
    click.option("--tasks", help="Tasks that all rows are labelled for, e.g. asr,lid. Default: by the fields."),
    options_from(
        ImportOptions,
        *("normaliser", "written", "per", "skip_bad", "rejected"),
        per={"option": "--one-cut-per"},
        rejected={"type": FILE},
    ),
)


@click.command("import")
@click.argument("output", type=FILE)
@OPTIONS
@overwrite_option
def import_corpus(output: Path, overwrite: bool, **given: Any) -> None:
    """Convert tables and annotation files to labelled cuts, written to OUTPUT (.jsonl or .jsonl.gz).

    One source gives the turns (--table, --kaldi, --hf, --stm, --subtitles, --transcripts, or --rttm, or --ctm); others
    may add what is missing: speakers (--rttm), words (--ctm), entities (--brat, --conll), audio (--recordings).

    \b
    A table with columns audio, text, language:
      tokenverse-pp manifest import cuts.jsonl.gz --table T.csv --audio-dir AUDIO
    Other column names, one language for all rows, entities marked in the text:
      ... --table T.tsv --column audio=path --column text=sentence --set language=fr \\
          --inline-entities brackets        # [Paris](LOC)
    Meetings: audio table, text from STM, speakers from RTTM, entities from BRAT:
      ... --recordings A.csv --stm STM/ --rttm RTTM/ --brat BRAT/ --one-cut-per recording

    \b
    Fields: id, audio (path), recording (name), channel (1 or A is the first, 3 or C the third),
    start, end, duration, text, speaker, language, entities, endpoint, tasks, custom.NAME.
    Columns with the name of a field need no --column. An empty cell is missing: the cut is then not
    labelled for the task of the field. [] (or marked text without marks) means no entities.
    Fields of tasks: text (asr), speaker (scd), endpoint (endp), entities (ner), language (lid),
    custom.written, or the text with --written (punct).

    Rows that cannot be mapped are listed with file and line, and nothing is written without --skip-bad.
    """
    from tokenverse_pp.data.importing.run import import_manifest

    refuse_existing([output], overwrite)
    import_manifest(output, options_of(given), say=click.echo)


def options_of(given: Dict[str, Any]) -> ImportOptions:
    """Check the command line's options, and convert them."""
    normaliser = given.pop("normaliser")
    if normaliser not in TEXT_NORMALISERS:
        raise UserError(f"--normaliser {normaliser}: expected one of {', '.join(TEXT_NORMALISERS)}")
    columns = pairs(given.pop("columns"), "--column")
    check_written(given["written"], normaliser)
    constants = constants_of(pairs(given.pop("constants"), "--set"), given.pop("tasks"))
    fields = FieldMap(columns, 0.001 if given.pop("times") == "ms" else 1.0)
    return ImportOptions(
        fields=fields,
        constants=constants,
        normaliser=normaliser,
        sampling_rate=None if given.pop("any_rate") else SAMPLING_RATE,
        **given,
    )


def pairs(values: Tuple[str, ...], option: str) -> Dict[str, str]:
    """``FIELD=VALUE`` options as a dictionary (raises UserError for unknown and repeated fields)."""

    found: Dict[str, str] = {}
    for value in values:
        name, sign, rest = value.partition("=")
        if not sign or name in found:
            raise UserError(f"{option} {value}: expected FIELD=..., each field once")
        check_field(name, option)
        found[name] = rest
    return found
