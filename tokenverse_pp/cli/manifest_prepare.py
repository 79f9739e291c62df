"""`tokenverse-pp manifest prepare`: one command a corpus.

Each hands its options to the function ``prepare_<corpus>`` of `tokenverse_pp.data.corpora` under their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import click

from tokenverse_pp.cli.options import jobs_option, options_from, together
from tokenverse_pp.data.editing.conversations import ConversationOptions
from tokenverse_pp.data.normalise import NORMALISERS

common = together(
    click.argument("corpus_dir", type=click.Path(file_okay=False, path_type=Path)),
    click.argument("output_dir", metavar="OUT", type=click.Path(file_okay=False, path_type=Path)),
    click.option(
        "--normaliser",
        type=click.Choice(list(NORMALISERS)),
        default="words",
        show_default=True,
        help="words: lower case, no punctuation, apostrophes and accents kept; cased: the same, case kept; none: as it "
        "is, brackets apart. tokenverse_pp/data/normalise.py has the rules by language.",
    ),
    jobs_option,
)
languages_option = click.option(
    "--language",
    "languages",
    multiple=True,
    help="A language folder of the corpus; give it several times. [default: all that are there]",
)
# Of telephone calls.
call_options = together(
    click.option(
        "--transcripts",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the transcripts, where it is not in CORPUS_DIR.",
    ),
    click.option(
        "--channels",
        type=click.Choice(["mixed", "separate"]),
        default="mixed",
        show_default=True,
        help="The two sides of a call as one channel (their mean), or each by itself (then not labelled for scd).",
    ),
    click.option(
        "--names",
        is_flag=True,
        help="Label ner too: proper names, type NAME, as far as the transcribers marked them (&Bob).",
    ),
)


def window_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `ConversationOptions`, handed to the command as one argument ``options``."""

    def gathered(*args: Any, **kwargs: Any) -> Any:
        values = {name: kwargs.pop(name) for name in ConversationOptions.__dataclass_fields__}
        return command(*args, options=ConversationOptions(**values), **kwargs)

    gathered.__doc__ = command.__doc__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    bounds = {name: {"type": click.FloatRange(min=0)} for name in ("max_gap", "margin", "pause")}
    bounds["max_seconds"] = {"type": click.FloatRange(min=0, min_open=True)}
    return options_from(ConversationOptions, **bounds)(gathered)


@click.command()
@common
@click.option(
    "--mic",
    type=click.Choice(["ihm-mix", "sdm", "mdm8-bf", "ihm"]),
    default="ihm-mix",
    show_default=True,
    help="ihm-mix: the sum of the headsets; sdm: one distant microphone; mdm8-bf: eight, beamformed; ihm: each headset "
    "by itself (then not labelled for scd).",
)
@click.option(
    "--partition",
    type=click.Choice(["full-corpus-asr", "full-corpus", "scenario-only"]),
    default="full-corpus-asr",
    show_default=True,
    help="AMI's own splits into train, dev and test.",
)
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    help="Folder or zip of the annotations, where they are not in CORPUS_DIR.",
)
@window_options
def ami(**given: Any) -> None:
    """AMI meetings: asr, scd, endp and lid, windows of several turns.

    CORPUS_DIR holds <meeting>/audio/*.wav at any depth and ami_public_manual_1.6.2 (folder or zip). Written:
    OUT/cuts_{train,dev,test}.jsonl.gz. A turn is what lhotse gives: a sentence, or a segment without a full stop; it
    ends in a semantic endpoint where the annotators wrote . ? or !. OUT/left_out.jsonl lists every turn that is in no
    window, and why.
    """
    from tokenverse_pp.data.corpora.conversations import prepare_ami

    prepare_ami(**given, say=click.echo)


@click.command("callhome-english")
@common
@call_options
@window_options
def callhome_english(**given: Any) -> None:
    """CALLHOME American English: asr, scd, endp and lid, telephone calls within families.

    CORPUS_DIR holds LDC97S42 (speech) and LDC97T14 (transcripts), or is LDC97S42 and --transcripts is LDC97T14. Calls
    are written as 16 kHz FLAC in OUT/audio; compressed SPHERE files need sph2pipe for that (lhotse install-sph2pipe).
    Written: OUT/cuts_{train,dev,test}.jsonl.gz. A window never holds a turn whose words are not known ((( )), speech in
    another language); OUT/left_out.jsonl lists them.
    """
    from tokenverse_pp.data.corpora.conversations import prepare_callhome_english

    prepare_callhome_english(**given, say=click.echo)


@click.command()
@common
@languages_option
def commonvoice(**given: Any) -> None:
    """Common Voice: asr and lid, sentences read by volunteers.

    CORPUS_DIR is an unpacked release, cv-corpus-<version>, with <locale>/{train,dev,test}.tsv and <locale>/clips.
    Written: OUT/cuts_<split>_<code>.jsonl.gz, one cut a sentence, and the clips as 16 kHz FLAC in OUT/audio (about
    110 MB an hour; clips that are there from an earlier run are kept). Locales become language codes: sv-SE is sv,
    zh-CN and zh-TW are zh, zh-HK is yue.
    """
    from tokenverse_pp.data.corpora.read_speech import prepare_commonvoice

    prepare_commonvoice(**given, say=click.echo)


@click.command()
@common
@call_options
@window_options
def eval2000(**given: Any) -> None:
    """Hub5 2000 evaluation: asr, scd, endp and lid, 40 telephone calls, a test set only.

    CORPUS_DIR holds LDC2002S09/hub5e_00/english and LDC2002T43/reference/english. Calls are written as 16 kHz FLAC in
    OUT/audio; compressed SPHERE files need sph2pipe for that (lhotse install-sph2pipe). Written:
    OUT/cuts_test.jsonl.gz.
    """
    from tokenverse_pp.data.corpora.conversations import prepare_eval2000

    prepare_eval2000(**given, say=click.echo)


@click.command()
@common
def librispeech(**given: Any) -> None:
    """LibriSpeech or Mini LibriSpeech: asr and lid, English read books.

    CORPUS_DIR is the unpacked folder LibriSpeech: <part>/<speaker>/<chapter>/. Every part that is there is prepared:
    OUT/cuts_train_clean_100.jsonl.gz, OUT/cuts_dev_other.jsonl.gz and so on, one cut an utterance.
    """
    from tokenverse_pp.data.corpora.read_speech import prepare_librispeech

    prepare_librispeech(**given, say=click.echo)


@click.command()
@common
def mls(**given: Any) -> None:
    """Multilingual LibriSpeech: asr and lid, eight languages of read books.

    CORPUS_DIR holds mls_<language> or mls_<language>_opus, each with metainfo.txt and, for train, dev and test,
    transcripts.txt and audio/. Every language that is there is prepared: OUT/cuts_<split>_<code>.jsonl.gz, one cut a
    segment, OUT/left_out.jsonl with what has no words.
    """
    from tokenverse_pp.data.corpora.read_speech import prepare_mls

    prepare_mls(**given, say=click.echo)


@click.command()
@common
@languages_option
def voxpopuli(**given: Any) -> None:
    """VoxPopuli: asr and lid, speeches in the European Parliament.

    CORPUS_DIR holds raw_audios/<language>/<year>/*.ogg and the transcripts asr_<language>.tsv.gz; where those are
    missing lhotse downloads them. Written: OUT/cuts_<split>_<language>.jsonl.gz, one cut a segment.
    """
    from tokenverse_pp.data.corpora.read_speech import prepare_voxpopuli

    prepare_voxpopuli(**given, say=click.echo)
