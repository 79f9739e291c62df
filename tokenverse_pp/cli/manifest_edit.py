"""`tokenverse-pp manifest label`, `mix`, `shuffle`, `split`, `subset` and `conversations`."""

from __future__ import annotations

import math
import re
import socket
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import click

from tokenverse_pp.base.engine import Parts, current_engine
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import aligned, write_text
from tokenverse_pp.base.options import names_of, tasks_named
from tokenverse_pp.cli.manifest_prepare import window_options
from tokenverse_pp.cli.options import (
    FILE,
    PATH,
    NamedNumber,
    chosen,
    engine_options,
    options_from,
    overwrite_option,
    refuse_existing,
)
from tokenverse_pp.data.editing import mix as mixing
from tokenverse_pp.data.editing.entity_finders import SpacyEntities, read_gazetteer
from tokenverse_pp.data.editing.label import (
    EntityFinder,
    GazetteerEntities,
    LabelChange,
    label_by_cluster,
    label_rows,
    labelling_digest,
)
from tokenverse_pp.data.editing.split import KeyRule, Wanted, read_ids, split_manifest, write_subset
from tokenverse_pp.data.editing.stats import corpus_names
from tokenverse_pp.data.manifests import read_rows, reading_bar, writing_rows
from tokenverse_pp.data.normalise import NORMALISERS


@click.command()
@click.argument("cuts", type=FILE)
@click.argument("output", type=FILE)
@options_from(
    LabelChange,
    *("add", "drop", "only", "language"),
    **{name: {"type": str, "default": None} for name in ("add", "drop", "only")},
)
@click.option("--spacy", "pipeline", help="Label entities with this spaCy pipeline: an installed name, or a folder.")
@click.option(
    "--gazetteer",
    type=FILE,
    help="Label entities with a file of lines 'phrase TAB type [TAB confidence]': longest match, whole words.",
)
@click.option("--match-case", is_flag=True, help="With --gazetteer: match case.")
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Confidence of entities without one: gazetteer lines without confidence, spaCy's rules.",
)
@options_from(LabelChange, "replace_labels")
@overwrite_option
@engine_options
def label(
    cuts: str,
    output: str,
    pipeline: Optional[str],
    gazetteer: Optional[str],
    match_case: bool,
    confidence: float,
    overwrite: bool,
    **given: Any,
) -> None:
    """Change the tasks that CUTS are labelled for, and write them to OUTPUT (.jsonl or .jsonl.gz).

    \b
      manifest label a.jsonl.gz b.jsonl.gz --add lid --language fr
      manifest label a.jsonl.gz b.jsonl.gz --only asr,lid
      manifest label a.jsonl.gz b.jsonl.gz --spacy fr_core_news_sm
      manifest label a.jsonl.gz b.jsonl.gz --gazetteer places.tsv

    Entities of spaCy and gazetteers are marked as machine labels: each entity has a "source" such as
    machine:spacy/fr_core_news_sm and a "confidence" from 0 to 1, and the cut's custom field label_source says that
    its task ner was labelled by that machine. `manifest stats` counts them separately. A cut that already has entities
    is refused without --replace-labels, so that human and machine labels are not mixed by mistake.

    With --engine ray, the same command resumes a stopped run from OUTPUT.parts.
    """
    refuse_existing([output], overwrite)
    tasks = {name: tasks_named(given[name], f"--{name}") or () for name in ("add", "drop")}
    change = chosen(LabelChange, given, only=tasks_named(given["only"], "--only"), **tasks)
    finder = _finder(pipeline, gazetteer, match_case, confidence)
    if finder is None and change == LabelChange(replace_labels=change.replace_labels):
        raise UserError("nothing to do: expected --add, --drop, --only, --language, --spacy or --gazetteer")
    parts = Parts(Path(f"{output}.parts")) if current_engine().is_cluster else None
    with writing_rows(output) as writer, reading_bar([cuts], "label") as bar:
        if parts is None:
            for data in label_rows(read_rows(cuts, bar), change, finder):
                writer.write(data)
        else:
            found = (pipeline, gazetteer, match_case, confidence)
            run = _digest_of(finder, change, found)
            make = partial(_same_finder, change, found, run)
            for lines in label_by_cluster(read_rows(cuts, bar), change, make, run, parts):
                writer.write_lines(lines)
    if parts is not None:
        parts.remove()
    click.echo(f"{writer.count} cuts: {output}")


def _finder(
    pipeline: Optional[str], gazetteer: Optional[str], match_case: bool, confidence: float
) -> Optional[EntityFinder]:

    if pipeline and gazetteer:
        raise UserError("--spacy and --gazetteer: expected one of them; the entities of a cut have one source")
    if pipeline:
        return SpacyEntities(pipeline, confidence)
    if gazetteer:
        return GazetteerEntities(read_gazetteer(gazetteer, match_case, confidence), Path(gazetteer).name)
    return None


def _digest_of(finder: Optional[EntityFinder], change: LabelChange, found: Tuple[Any, ...]) -> str:
    """`labelling_digest` of a change, and a finder with its options."""
    return labelling_digest(change, found, getattr(getattr(finder, "pipeline", None), "meta", None), found[1])


def _same_finder(change: LabelChange, found: Tuple[Any, ...], run: str) -> Optional[EntityFinder]:
    """The finder in a worker of a cluster (raises UserError if it differs from that of the command)."""
    finder = _finder(*found)
    if _digest_of(finder, change, found) != run:
        raise UserError(f"{found[0] or found[1]}: on {socket.gethostname()} it differs from that of the command")
    return finder


@click.command()
@click.argument("cuts", nargs=-1, required=True, type=FILE)
@click.argument("output", type=FILE)
@click.option("--weights", help="Relative numbers of cuts to draw from each manifest, e.g. 2,1,1.")
@click.option(
    "--by",
    type=click.Choice(["hours", "language"]),
    help="Without --weights: balance the hours of the manifests, or of the languages in them. [default: hours]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, 1),
    default=None,
    help="Shares are proportional to hours^T: 1 draws all hours alike, 0 gives equal shares. [default: 1]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the order of an interleaved manifest.")
@click.option("--prefix", is_flag=True, help="Prefix ids with the name of their manifest (interleaved manifest only).")
@overwrite_option
def mix(
    cuts: Tuple[str, ...],
    output: str,
    weights: Optional[str],
    by: Optional[str],
    temperature: Optional[float],
    seed: int,
    prefix: bool,
    overwrite: bool,
) -> None:
    """Mix manifests CUTS for training: weights for the training configuration, or one interleaved manifest OUTPUT.

    \b
      manifest mix ami.jsonl.gz cv.jsonl.gz mix.yaml --temperature 0.5
      manifest mix ami.jsonl.gz cv.jsonl.gz mix.yaml --weights 2,1
      manifest mix ami.jsonl.gz cv.jsonl.gz mixed.jsonl.gz --prefix

    An OUTPUT .yaml is a further configuration for training, which draws from each manifest endlessly by its weight:
    recipes/train.py --config my.yaml --config mix.yaml. An OUTPUT .jsonl or .jsonl.gz has every cut once, in an order
    drawn by the weights and the seed.

    Prints the expected share of each manifest in the hours, and in each task's labels.
    """
    to_yaml = output.endswith((".yaml", ".yml"))
    if not to_yaml and not output.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(f"{output}: expected a name that ends in .yaml, .jsonl or .jsonl.gz")
    if weights is not None and (by is not None or temperature is not None):
        raise UserError("--weights: cannot be given together with --by or --temperature")
    if to_yaml and prefix:
        raise UserError("--prefix: changes ids, so it needs an OUTPUT of cuts (.jsonl or .jsonl.gz)")
    refuse_existing([output], overwrite, " (the last name is OUTPUT)")
    chosen = _numbers(weights, len(cuts)) if weights is not None else None
    with reading_bar(cuts, "count") as bar:
        counts = mixing.count_each(cuts, bar)
    if chosen is None:
        shares = mixing.shares_by_language if by == "language" else mixing.shares_by_hours
        chosen = mixing.weights_for(shares(counts, 1.0 if temperature is None else temperature), counts)
    if to_yaml:
        write_text(output, mixing.training_yaml(cuts, chosen))
    else:
        with writing_rows(output) as writer, reading_bar(cuts, "mix") as bar:
            for row in mixing.mixed_rows(cuts, chosen, seed, prefix, bar):
                writer.write(row)
        click.echo(f"{writer.count} cuts: {output}\n")
    click.echo(mixing.mix_table(corpus_names(cuts), chosen, counts))
    click.echo("\n" + mixing.languages_table(chosen, counts))


@click.command()
@click.argument("cuts", type=FILE)
@click.argument("output", type=FILE)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the order.")
@overwrite_option
def shuffle(cuts: str, output: str, seed: int, overwrite: bool) -> None:
    """Write CUTS to OUTPUT in random order, for training, which shuffles only within a buffer (data.buffer_size).

    \b
      manifest shuffle cuts_train.jsonl.gz cuts_train.jsonl.gz --overwrite

    Memory does not grow with the number of cuts, but the disk of OUTPUT needs room for all of them
    uncompressed. `manifest prepare` shuffles the training parts that it writes.
    """
    refuse_existing([output], overwrite)
    with reading_bar([cuts], "shuffle") as bar:
        count = mixing.shuffle_manifest(cuts, output, seed, bar)
    click.echo(f"{count} cuts: {output}")


def _numbers(text: str, expected: int) -> List[float]:
    """``2,1,1`` as positive numbers, one per manifest."""

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--weights {text}: expected numbers separated by commas") from None
    if len(numbers) != expected:
        raise UserError(f"--weights {text}: expected one for each of the {expected} manifests, got {len(numbers)}")
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise UserError(f"--weights {text}: expected positive numbers")
    return numbers


@click.command()
@click.argument("cuts", type=FILE)
@click.argument("output_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--shares",
    default="train=0.9,dev=0.05,test=0.05",
    show_default=True,
    help="Names of the sets and their shares of the hours.",
)
@options_from(
    KeyRule,
    *("kinds", "text_words", "allow_missing"),
    kinds={"option": "--by", "default": ("speaker",)},
    text_words={"type": click.IntRange(min=1)},
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the assignment.")
@overwrite_option
def split(cuts: str, output_dir: Path, shares: str, seed: int, overwrite: bool, **given: Any) -> None:
    """Split CUTS into OUTPUT_DIR/cuts_train.jsonl.gz, cuts_dev.jsonl.gz and so on, without leaks.

    \b
      manifest split cuts.jsonl.gz data --by speaker
      manifest split cuts.jsonl.gz data --by speaker --by text --text-words 4
      manifest split cuts.jsonl.gz data --by recording --shares train=0.98,dev=0.02

    Cuts that share a speaker (text, ..) go to the same set, also if only other cuts connect them: with several --by,
    groups are connected components. Every cut is checked for leaks once more when it is written.
    """
    wanted = parse_shares(shares)
    outputs = {name: output_dir / f"cuts_{name}.jsonl.gz" for name in wanted}
    refuse_existing(outputs.values(), overwrite)
    kinds = (kind for names in given["kinds"] for kind in names_of(names))
    rule = chosen(KeyRule, given, kinds=tuple(dict.fromkeys(kinds)))
    with reading_bar([cuts], "split", passes=2) as bar:
        counts = split_manifest(cuts, outputs, wanted, rule, seed, bar)
    hours = sum(count["hours"] for count in counts.values())
    rows = [["set", "cuts", "groups", "hours", "share %", "wanted %"]]
    for name, count in counts.items():
        numbers = [f"{count['cuts']}", f"{count['groups']}", f"{count['hours']:.2f}"]
        got, asked = count["hours"] / hours, wanted[name] / sum(wanted.values())
        rows.append([name, *numbers, f"{100 * got:.1f}", f"{100 * asked:.1f}"])
    click.echo(aligned(rows))


def parse_shares(text: str) -> Dict[str, float]:
    """``train=0.9,dev=0.1`` as a mapping (raises UserError)."""

    shares: Dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        name = name.strip()
        if not re.fullmatch(r"[\w-]+", name) or name in shares or not 0 < share < math.inf:
            raise UserError(f"--shares {text}: expected different names with shares > 0, e.g. train=0.9,dev=0.1")
        shares[name] = share
    if len(shares) < 2 or len(shares) > 100:
        raise UserError(f"--shares {text}: expected 2 to 100 sets")
    return shares


@click.command()
@click.argument("source", metavar="CUTS", type=FILE)
@click.argument("output", type=FILE)
@options_from(
    Wanted,
    *("cuts", "hours", "at_random", "seed", "languages", "corpora", "tasks", "without_tasks", "ids", "keep_labels"),
    cuts={"type": click.IntRange(min=1)},
    hours={"type": click.FloatRange(0, min_open=True)},
    at_random={"option": "--random"},
    languages={"option": "--language"},
    corpora={"option": "--corpus"},
    tasks={"option": "--task"},
    without_tasks={"option": "--without-task"},
    ids={"type": FILE},
    keep_labels={"type": NamedNumber("TASK=SHARE", "ner=0.25"), "multiple": True},
)
@overwrite_option
def subset(source: str, output: str, overwrite: bool, **given: Any) -> None:
    """Write a part of CUTS to OUTPUT, in their order.

    \b
      manifest subset all.jsonl.gz small.jsonl.gz --hours 10 --random
      manifest subset all.jsonl.gz french.jsonl.gz --language fr --task ner
      manifest subset all.jsonl.gz partly.jsonl.gz --keep-labels ner=0.25 --keep-labels lid=0.5

    The last example is for experiments on partially labelled data: the labels of the other cuts are dropped.
    """
    refuse_existing([output], overwrite)
    sets = {name: frozenset(given[name]) for name in ("languages", "corpora", "tasks", "without_tasks")}
    ids = read_ids(given["ids"], source) if given["ids"] else None
    shares = dict(given["keep_labels"])
    if len(shares) < len(given["keep_labels"]):
        raise UserError("--keep-labels: expected once for each task")
    wanted = chosen(Wanted, given, ids=ids, keep_labels=shares, **sets)
    with reading_bar([source], "subset", passes=2) as bar:
        report = write_subset(source, output, wanted, bar)
    click.echo(f"{report.cuts} cuts, {report.hours:.2f} hours: {output}")
    for task, kept in report.kept.items():
        click.echo(f"{task}: kept on {kept} cuts, dropped from {report.lost[task]}")


@click.command()
@click.argument("turns", type=PATH)
@click.argument("output", type=PATH)
@click.option(
    "--recordings",
    type=PATH,
    help="RecordingSet of TURNS, if TURNS is a lhotse SupervisionSet. [default: TURNS is a CutSet]",
)
@click.option(
    "--tasks",
    default="asr,scd,endp",
    show_default=True,
    help="Tasks of the turns; lid needs a language, ner needs entities. Endpoints are labelled by this command.",
)
@click.option("--language", help="Language code of turns without a language.")
@click.option(
    "--normaliser",
    type=click.Choice(list(NORMALISERS)),
    default="none",
    show_default=True,
    help="Normaliser of the texts.",
)
@overwrite_option
@window_options
def conversations(turns: Path, output: Path, overwrite: bool, tasks: str, **given: Any) -> None:
    """Join turns of long recordings into cuts of several turns, with real speaker changes and endpoints, in OUTPUT.

    TURNS: cuts that hold a recording's turns, all in one cut or one cut each (grouped by recording), or supervisions
    with --recordings. Each turn needs a speaker and a text; without a text (null) its words are unknown, and no cut
    contains its speech. Cuts end where nobody speaks, or where one turn ends exactly when the next begins. Turns that
    are in no cut are listed, with the reason, in a file .left_out.jsonl beside OUTPUT.
    """
    from tokenverse_pp.data.editing.conversations import write_conversations

    refuse_existing([output], overwrite)
    write_conversations(turns, output, tasks=tasks_named(tasks, "--tasks") or (), **given, say=click.echo)
