#!/usr/bin/env python3
"""Score a model as public boards do, with one command per board.

\b
pip install 'tokenverse_pp[scoreboards]'
python recipes/scoreboards/score.py ami --cuts data/ami/cuts_test.jsonl.gz --model exp/my --output-dir exp/my/ami
python recipes/scoreboards/score.py ami --cuts data/ami/cuts_test.jsonl.gz --hyps out/hyps.jsonl --output-dir out

With --model the cuts are first decoded by recipes/decode.py, which gets all further options (--beam 8, --lm ..,
--chunk-ms 320). With --hyps they are only scored. A cut without a hypothesis is an error. The scores are printed as
tables, and written to OUTPUT_DIR/BOARD.json. recipes/scoreboards/README.md lists figures to compare with, and the
differences from each board.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import click
import eot_bench
import meetings
import slue
from decoded_cuts import Decoded, decoded, finish, heading, versions
from word_errors import OURS, Normaliser, Utterance, normalisers, word_scores, word_table

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import aligned
from tokenverse_pp.base.languages import language_group
from tokenverse_pp.base.options import SearchOptions, StreamingOptions
from tokenverse_pp.cli.groups import Group
from tokenverse_pp.cli.options import (
    chosen,
    model_options,
    options_from,
    plugin_options,
    source_options,
    threads_option,
    together,
)
from tokenverse_pp.data.labels import labelled_tasks, validate_cuts
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.evaluation.scoring import score_table, was_decoded

SILENCES = {  # where those of eot-bench are from
    "data": "silence_spans of the data",
    "cuts": "by the times of words, where the cuts have them, else by silero-vad; two seconds behind each turn",
    "predictions": "those of the predictions",
}
NO_LANGUAGE = "-"
FURTHER = {"ignore_unknown_options": True, "max_content_width": 100}

board_options = together(
    click.option(
        "--cuts", "cut_files", required=True, multiple=True, help="CutSet of the board; several: all together."
    ),
    click.option("--model", help="Decode with this model first: folder, checkpoint, experiment, name or hub id."),
    click.option("--hyps", type=click.Path(path_type=Path), help="Score this hyps.jsonl of the same cuts instead."),
    click.option(
        "--output-dir", required=True, type=click.Path(path_type=Path), help="For BOARD.json, and what --model writes."
    ),
    click.option(
        "--open-asr",
        type=click.Path(path_type=Path),
        help="A checkout of github.com/huggingface/open_asr_leaderboard: count words by the board's own code as well. "
        "Code of its folder normalizer is run.",
    ),
    click.argument("further", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF decode.py]..."),
)


@click.group(cls=Group, help=__doc__, context_settings={"max_content_width": 100})
def main() -> None:
    """See the module's docstring."""


def word_part(found: Decoded, by: Mapping[str, Normaliser]) -> Tuple[Dict[str, Any], str]:
    """WER and CER by each normaliser, and their table."""
    utterances = found.utterances()
    scores = {name: word_scores(utterances, normaliser) for name, normaliser in by.items()}
    return scores, word_table(scores, {name: normaliser.title for name, normaliser in by.items()})


@main.command(context_settings=FURTHER)
@board_options
@click.option(
    "--speakers/--no-speakers", default=True, show_default=True, help="cpWER, DI-cpWER and ORC-WER, by meeteval."
)
def ami(speakers: bool, **given: Any) -> None:
    """Meetings: WER, F1 of speaker changes and endpoints, cpWER.

    \b
      score.py ami --cuts data/ami/cuts_test.jsonl.gz --model exp/my --output-dir exp/my/ami --beam 8

    Any conversations will do (CALLHOME, Eval2000). cpWER needs the speaker of each written turn: a field "speaker" in
    the turns of --hyps, or a channel for each speaker (manifest prepare ami --mic ihm); DI-cpWER does not.
    """
    by = normalisers(given["open_asr"])
    found = decoded(given)
    words, table = word_part(found, by)
    tasks = {name: score for name, score in found.scores.items() if not name.startswith("wer")}
    result = {**found.about(), "wer": words, **{name: tasks[name] for name in ("scd", "endp", "lid") if name in tasks}}
    parts = [heading("AMI", result), table, score_table(tasks)]
    if speakers:
        scores = {name: speaker_part(found, by[name]) for name in by if by[name].compounds is None}
        result["speakers"] = scores
        parts.append(meetings.speaker_table(scores, {name: by[name].title for name in scores}))
        if not all("cpwer" in rates for rates in scores.values()):
            parts.append("cpWER: not counted, because [SCD] does not say who speaks (see --help)")
    finish(given, "ami", result, parts)


def speaker_part(found: Decoded, by: Normaliser) -> Dict[str, Dict[str, Any]]:
    """cpWER and DI-cpWER of words as a normaliser writes them."""

    def text(words: str, language: Optional[str]) -> str:
        return words if by.text is None else by.text(words, language).strip()

    reference = meetings.reference_segments(found.cuts, text)
    return meetings.speaker_scores(reference, meetings.hypothesis_segments(found.cuts, found.hyps, found.tasks, text))


@main.command("slue", context_settings=FURTHER)
@board_options
@click.option("--raw", is_flag=True, help="Score the 18 raw types, not the 7 groups of the board.")
def slue_voxpopuli(raw: bool, **given: Any) -> None:
    """SLUE-VoxPopuli: F1 and label-F1 of named entities, WER.

    \b
      score.py slue --cuts data/slue_voxpopuli/cuts_test.jsonl.gz --model exp/my --output-dir exp/my/slue
    """
    by = normalisers(given["open_asr"])
    found = decoded(given)
    examples = [
        example
        for example, cut in found.pairs
        if "ner" in labelled_tasks(cut) and was_decoded("ner", found.hyps[cut.id])
    ]
    if len(examples) < len(found.pairs):
        rest = f"{len(found.pairs) - len(examples)} of {len(found.pairs)} cuts"
        raise UserError(f"{rest} are not labelled for ner, or were decoded without it")
    words, table = word_part(found, by)
    entities = slue.entity_scores(slue.entities_of(examples, combined=not raw))
    result = {**found.about(), "wer": words, "labels": "raw" if raw else "combined", "ner": entities}
    finish(given, "slue", result, [heading("SLUE-VoxPopuli", result), table, slue.entity_table(entities, not raw)])


def languages_command(name: str, title: str, where: str) -> Callable[..., None]:
    """The command of a corpus of read speech in many languages."""

    def command(**given: Any) -> None:
        by = normalisers(given["open_asr"])
        found = decoded(given)
        scores = language_scores(found, by)
        result = {**found.about(), "languages": scores}
        finish(given, name, result, [heading(title, result), language_table(scores, by)])

    command.__doc__ = f"""{title}: WER and CER by language, accuracy of the language.

    \b
      score.py {name} {where} --model exp/my --output-dir exp/my/{name}
    """
    return command


for _name, _title, _where in (
    ("fleurs", "FLEURS", "--cuts data/fleurs/cuts_test_fr.jsonl.gz --cuts data/fleurs/cuts_test_de.jsonl.gz"),
    ("commonvoice", "Common Voice", "--cuts data/commonvoice/cuts_test_fr.jsonl.gz"),
    ("mls", "MLS", "--cuts data/mls/cuts_test_fr.jsonl.gz --cuts data/mls/cuts_test_nl.jsonl.gz"),
):
    main.command(_name, context_settings=FURTHER)(board_options(languages_command(_name, _title, _where)))


def language_scores(found: Decoded, by: Mapping[str, Normaliser]) -> Dict[str, Any]:
    """By language, ``all`` together and ``mean`` over languages: words by each normaliser, and ``lid``.

    Cuts of no language or of several are under `NO_LANGUAGE`, which is none of those that are averaged.
    """
    groups: Dict[str, List[Utterance]] = {}
    for (example, cut), utterance in zip(found.pairs, found.utterances()):
        spoken = {language_group(turn.language, example.languages) for turn in cut.supervisions}
        found_one = spoken.pop() if len(spoken) == 1 else None
        groups.setdefault(found_one or NO_LANGUAGE, []).append(utterance)
    confusion: Dict[str, Dict[str, int]] = found.scores.get("lid", {}).get("confusion", {})
    scores: Dict[str, Any] = {}
    for language, utterances in sorted(groups.items()):
        row = confusion.get(language)
        lid = row.get(language, 0) / sum(row.values()) if row else None
        scores[language] = {name: word_scores(utterances, n, interval=False) for name, n in by.items()}
        scores[language]["lid"] = lid
    known = [score for name, score in scores.items() if name != NO_LANGUAGE] or list(scores.values())
    everything = [utterance for utterances in groups.values() for utterance in utterances]
    scores["all"] = {name: word_scores(everything, n, interval=False) for name, n in by.items()}
    scores["all"]["lid"] = found.scores.get("lid", {}).get("accuracy")
    lids = [score["lid"] for score in known if score["lid"] is not None]
    scores["mean"] = {
        name: {rate: sum(score[name][rate] for score in known) / len(known) for rate in ("wer", "cer")} for name in by
    }
    scores["mean"]["lid"] = sum(lids) / len(lids) if lids else None
    return scores


def language_table(scores: Mapping[str, Any], by: Mapping[str, Normaliser]) -> str:
    """A row for each language, then their mean and all cuts together."""
    rows = [["language", "cuts", "words", *(f"{rate} {n}" for n in by for rate in ("WER %", "CER %")), "language %"]]
    rest = [name for name in scores if name not in ("all", "mean")]
    for name in [*rest, "mean", "all"]:
        found = scores[name]
        counts = [str(found[OURS][key]) if key in found[OURS] else "" for key in ("utterances", "words")]
        rates = [f"{100 * found[n][rate]:.2f}" for n in by for rate in ("wer", "cer")]
        lid = "-" if found["lid"] is None else f"{100 * found['lid']:.1f}"
        title = f"mean of {len(set(rest) - {NO_LANGUAGE}) or 1}" if name == "mean" else name
        rows.append([title, *counts, *rates, lid])
    titles = "; ".join(f"{name}: {n.title}" for name, n in by.items() if name != n.title)
    return f"{aligned(rows)}\n{titles}"


@main.command("eot-bench", context_settings={"max_content_width": 100})
@model_options
@click.option(
    "--data",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="eot-bench's data: Parquet files, or a folder of them.",
)
@click.option("--cuts", type=click.Path(path_type=Path), help="Own cuts labelled for endp, in place of --data.")
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    help="Score these (predictions.parquet of any detector, or JSON lines).",
)
@click.option(
    "--score-point", type=float, help="Of --predictions: only the score after so many seconds of silence counts."
)
@click.option(
    "--output-dir", required=True, type=click.Path(path_type=Path), help="For eot-bench.json and predictions.parquet."
)
@options_from(
    ChunkOptions,
    *("chunk_ms", "left_chunks", "sinks"),
    chunk_ms={"default": 320, "help": "Decode as a stream in chunks of so many milliseconds."},
    left_chunks={"default": 8},
)
@options_from(SearchOptions, "method", "beam", method={"default": "greedy"})
@threads_option
@plugin_options
@source_options
def endpoints(**given: Any) -> None:
    """eot-bench: false cut-offs against latency of a detector of ends of turns.

    \b
      score.py eot-bench --data eot-bench-data/en --model exp/my --output-dir exp/my/eot
      score.py eot-bench --predictions output/en/some_model/predictions.parquet --output-dir exp/other

    The model decodes each turn as a stream; the score is the probability of [ENDP] while no word is written. Own cuts
    are turned into turns as `tokenverse-pp endpoints` does it, followed by two seconds of silence.
    """
    sources = [name for name in ("data", "cuts", "predictions") if given[name]]
    if len(sources) != 1:
        raise UserError("expected one of --data, --cuts (decode, then score) and --predictions")
    if given["score_point"] is not None and sources != ["predictions"]:
        raise UserError("--score-point: it is for --predictions; a stream is scored at every time")
    if given["predictions"]:
        silences, title = (
            eot_bench.read_predictions(given["predictions"]),
            given["predictions"].parent.name or "detector",
        )
    else:
        silences, title = stream_silences(given)
    scores = eot_bench.bench_scores(silences, given["score_point"])
    result = {
        **scores,
        "source": [str(path) for path in (given["data"] or [given[sources[0]]])],
        "versions": versions(),
    }
    if given["model"] or not given["predictions"]:
        result.update(model=title, chunk_ms=given["chunk_ms"], left_chunks=given["left_chunks"], sinks=given["sinks"])
    head = f"eot-bench: {scores['turns']} ends of turns, {scores['pauses']} pauses of 0.2 to 5 s inside turns"
    head += f"\nsilences: {SILENCES[sources[0]]}"
    finish(given, "eot-bench", result, [head, eot_bench.bench_table(scores, title)])


def stream_silences(given: Mapping[str, Any]) -> Tuple[List[eot_bench.Silence], str]:
    """Decode the turns of --data or --cuts as streams; writes predictions.parquet. Returns the model's name too."""
    from tokenverse_pp.api.folders import DEFAULT
    from tokenverse_pp.api.model import load_named
    from tokenverse_pp.data.distributed import set_threads
    from tokenverse_pp.evaluation.endpoints import stream_tracks, turns_of

    model = given["model"] or DEFAULT
    loaded, _ = load_named(model, given["encoder"], given["trust_plugins"])
    if "endp" not in loaded.tasks:
        raise UserError(f"{model}: the model does not know the task 'endp'")
    set_threads(given["threads"], loaded.model)
    languages: Dict[str, str] = {}
    if given["data"]:
        turns, languages = eot_bench.turns_of_data(given["data"])
        spoken = sorted(set(languages.values()))
        if len(spoken) > 1:
            found = ", ".join(spoken)
            raise UserError(
                f"--data: turns in {found}; the board scores each language by itself: give the files of one"
            )
    else:
        validate_cuts(str(given["cuts"]))
        turns = turns_of(read_cuts(given["cuts"]))
    options = StreamingOptions(chosen(ChunkOptions, given), search=chosen(SearchOptions, given))
    silences = eot_bench.silences_of(turns, stream_tracks(loaded, turns, options))
    target = given["output_dir"] / "predictions.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    eot_bench.write_predictions(target, silences, languages)
    click.echo(f"predictions: {target}")
    return silences, str(model)


if __name__ == "__main__":
    main()
