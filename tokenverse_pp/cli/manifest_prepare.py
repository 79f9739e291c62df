"""`tokenverse-pp manifest prepare`: one command per corpus.

Each passes its options to the function ``prepare_<corpus>`` of `tokenverse_pp.data.corpora`, those of all corpora as
one `Preparation`. The help ends with what a rerun does, which is the same for all, and with the corpus's licence.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any, Callable

import click

from tokenverse_pp.cli.manifest_import import pairs
from tokenverse_pp.cli.options import PATH, engine_options, jobs_option, options_from, together
from tokenverse_pp.data.corpora import LICENCES
from tokenverse_pp.data.corpora.common import Preparation
from tokenverse_pp.data.editing.conversations import ConversationOptions
from tokenverse_pp.data.normalise import NORMALISERS

RERUN = (
    "A repeated run keeps complete parts, and prepares those that are missing, or were prepared with other options or "
    "from other files (OUT/prepared.json has their number, bytes and newest time). OUT/left_out.jsonl lists what is in "
    "no cut, with the reason."
)
corpus_argument = click.argument("corpus_dir", type=click.Path(file_okay=False, path_type=Path))
common_options = together(
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
    click.option("--force", is_flag=True, help="Prepare all again; only audio that was converted is kept."),
)


def as_preparation(command: Callable[..., Any]) -> Callable[..., Any]:
    """Pass the options of all corpora to the command as a `Preparation`, its first argument."""

    @functools.wraps(command)
    def called(**given: Any) -> None:
        shared = {name: given.pop(name) for name in Preparation.__dataclass_fields__ if name in given}
        command(Preparation(**shared, say=click.echo), **given)

    return called


common = together(corpus_argument, common_options, engine_options, as_preparation)
written_option = click.option(
    "--written",
    is_flag=True,
    help="Also label punct (punctuation and case), if the written text has the same words as the plain text.",
)
languages_option = click.option(
    "--language", "languages", multiple=True, help="A language folder of the corpus; may be given again. [default: all]"
)
# Options of corpora of telephone calls.
call_options = together(
    click.option(
        "--transcripts",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the transcripts, if it is not in CORPUS_DIR.",
    ),
    click.option(
        "--channels",
        type=click.Choice(["mixed", "separate"]),
        default="mixed",
        show_default=True,
        help="The two sides of a call as one channel (their mean), or each by itself (then not labelled for scd).",
    ),
    click.option(
        "--names", is_flag=True, help="Also label ner: the proper names that the transcribers marked (&Bob), type NAME."
    ),
)


def corpus_command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command for a corpus; its help ends with what a rerun does and with the licence."""

    def made(command: Callable[..., Any]) -> click.Command:
        command.__doc__ = f"{(command.__doc__ or '').rstrip()}\n\n    {RERUN}\n\n    Licence: {LICENCES[name]}.\n    "
        return click.command(name)(command)

    return made


def calls(function: str) -> Callable[[Callable[[], None]], Callable[..., Any]]:
    """Make a function of `tokenverse_pp.data.corpora`, MODULE.NAME, the body of a command, which has only its help."""

    def made(command: Callable[[], None]) -> Callable[..., Any]:
        @functools.wraps(command)
        def called(*arguments: Any, **given: Any) -> Any:
            module, name = function.split(".")
            return getattr(importlib.import_module(f"tokenverse_pp.data.corpora.{module}"), name)(*arguments, **given)

        return called

    return made


def window_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `ConversationOptions`, which the command gets as one argument ``options``."""

    @functools.wraps(command)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        values = {name: kwargs.pop(name) for name in ConversationOptions.__dataclass_fields__}
        return command(*args, options=ConversationOptions(**values), **kwargs)

    bounds = {name: {"type": click.FloatRange(min=0)} for name in ("max_gap", "margin", "pause")}
    bounds["max_seconds"] = {"type": click.FloatRange(min=0, min_open=True)}
    return options_from(ConversationOptions, **bounds)(gathered)


@corpus_command("ami")
@common
@written_option
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
@click.option("--annotations", type=PATH, help="Folder or zip of the annotations, where they are not in CORPUS_DIR.")
@window_options
@calls("conversations.prepare_ami")
def ami() -> None:
    """AMI meetings: asr, scd, endp and lid, windows of several turns.

    CORPUS_DIR holds <meeting>/audio/*.wav at any depth and ami_public_manual_1.6.2 (folder or zip). Writes
    OUT/cuts_{train,dev,test}.jsonl.gz. Turns are those of lhotse: a sentence, or a segment without a full stop. A turn
    ends in a semantic endpoint if the annotators wrote . ? or !.
    """


@corpus_command("callhome-english")
@common
@written_option
@call_options
@window_options
@calls("telephone.prepare_callhome_english")
def callhome_english() -> None:
    """CALLHOME American English: asr, scd, endp and lid, telephone calls within families.

    CORPUS_DIR holds LDC97S42 (speech) and LDC97T14 (transcripts), as their archives unpack, or is LDC97S42 and
    --transcripts is LDC97T14. Calls are written as 16 kHz FLAC in OUT/audio; compressed SPHERE files need sph2pipe for
    that (lhotse install-sph2pipe).
    Writes OUT/cuts_{train,dev,test}.jsonl.gz. A window holds both sides of the call, and never a turn with unknown
    words ((( )), speech in another language).
    """


@corpus_command("commonvoice")
@common
@written_option
@languages_option
@calls("read_speech.prepare_commonvoice")
def commonvoice() -> None:
    """Common Voice: asr and lid, sentences read by volunteers.

    CORPUS_DIR is an unpacked release, cv-corpus-<version>, with <locale>/{train,dev,test}.tsv and <locale>/clips.
    Writes OUT/cuts_<split>_<code>.jsonl.gz, one cut per sentence, and the clips as 16 kHz FLAC in OUT/audio (about
    110 MB per hour; clips from an earlier run are kept). Locales become language codes: sv-SE is sv,
    zh-CN and zh-TW are zh, zh-HK is yue.
    """


@corpus_command("earnings22")
@common
@written_option
@window_options
@calls("earnings22.prepare_earnings22")
def earnings22() -> None:
    """Earnings-22: asr, scd, endp and lid, earnings calls in English from all over the world, a test set only.

    CORPUS_DIR is earnings22 of github.com/revdotcom/speech-datasets with its audio (git lfs pull): media/*.mp3 and
    transcripts/force_aligned_nlp_references/*.aligned.nlp, since the other transcripts have no times. Calls are written
    as 16 kHz FLAC in OUT/audio. Writes OUT/cuts_test.jsonl.gz, windows of several turns; a turn is a sentence. No
    window holds a sentence with a word that the aligner did not find, so 63 of the 119 hours are left.
    """


@corpus_command("eval2000")
@common
@written_option
@call_options
@window_options
@calls("telephone.prepare_eval2000")
def eval2000() -> None:
    """Hub5 2000 evaluation: asr, scd, endp and lid, 40 telephone calls, a test set only.

    CORPUS_DIR holds LDC2002S09/hub5e_00/english and LDC2002T43/[2000_hub5_eng_eval_tr/]reference/english. Calls are
    written as 16 kHz FLAC in OUT/audio; compressed SPHERE files need sph2pipe for that (lhotse install-sph2pipe).
    Writes OUT/cuts_test.jsonl.gz.
    """


@corpus_command("fleurs")
@common
@written_option
@languages_option
@calls("read_speech.prepare_fleurs")
def fleurs() -> None:
    """FLEURS: asr and lid, sentences of Wikipedia read in 102 languages.

    CORPUS_DIR is a copy of google/fleurs from the hub, [data/]<locale>/<split>.tsv and audio/<split>.tar.gz (packed, or
    unpacked to audio/<split>/), or what `lhotse download fleurs` wrote. Every split that is found is prepared:
    OUT/cuts_<split>_<code>.jsonl.gz, one cut per reading. Archives are unpacked into OUT/audio. The id of a cut is
    <locale>-<clip>, such as fr_fr-10004088536354799741.
    """


@corpus_command("huggingface")
@click.argument("corpus_dir", metavar="DATASET", type=PATH)
@common_options
@as_preparation
@written_option
@click.option("--config", help="Configuration, where there are several.")
@click.option(
    "--split", "splits", multiple=True, help="A split; give it several times. No others are downloaded. [default: all]"
)
@click.option("--column", "columns", multiple=True, metavar="FIELD=COLUMN", help="Which column holds a field.")
@click.option("--set", "constants", multiple=True, metavar="FIELD=VALUE", help="A field of rows that lack it.")
@click.option("--tasks", help="Tasks that all rows are labelled for, e.g. asr,lid. Default: by the fields.")
@click.option("--widen-entities", "widen", is_flag=True, help="Extend entities that are a part of a word to all of it.")
def huggingface(run: Preparation, **given: Any) -> None:
    """A data set of Hugging Face's library: the tasks that its columns have labels for.

    DATASET is a folder (save_to_disk, parquet) or a name on the hub, owner/name, which is downloaded. Its
    splits become OUT/cuts_<split>.jsonl.gz, validation as dev, one cut per row; audio within the rows is written
    to OUT/audio. Needs pip install 'tokenverse_pp[datasets]'.

    \b
      tokenverse-pp manifest prepare huggingface owner/name data/name --config fr \\
          --column text=sentence --set language=fr --num-jobs 8

    Fields and columns are those of `manifest import --help`: audio (a path, bytes or samples) and text are needed;
    speaker, language, entities (BIO tags, or objects of start, end or length, and type) and endpoint are labels if
    present. Columns with a field's name are found without --column.
    """
    from tokenverse_pp.data.corpora.huggingface import prepare_huggingface
    from tokenverse_pp.data.importing.fields import constants_of

    columns = pairs(given.pop("columns"), "--column")
    constants = constants_of(pairs(given.pop("constants"), "--set"), given.pop("tasks"))
    prepare_huggingface(run, **given, columns=columns, constants=constants)


@corpus_command("librispeech")
@common
@calls("read_speech.prepare_librispeech")
def librispeech() -> None:
    """LibriSpeech or Mini LibriSpeech: asr and lid, English read books.

    CORPUS_DIR is the unpacked folder LibriSpeech: <part>/<speaker>/<chapter>/. Every part that is found is prepared:
    OUT/cuts_train_clean_100.jsonl.gz, OUT/cuts_dev_other.jsonl.gz and so on, one cut per utterance.
    """


@corpus_command("mls")
@common
@calls("read_speech.prepare_mls")
def mls() -> None:
    """Multilingual LibriSpeech: asr and lid, eight languages of read books.

    CORPUS_DIR holds mls_<language> or mls_<language>_opus, each with metainfo.txt and, for train, dev and test,
    transcripts.txt and audio/. Every language that is found is prepared: OUT/cuts_<split>_<code>.jsonl.gz, one cut
    per segment.
    """


@corpus_command("slue-voxpopuli")
@common
@written_option
@click.option(
    "--entities",
    type=click.Choice(["combined", "raw"]),
    default="combined",
    show_default=True,
    help="The 7 types that the benchmark scores, or the 18 that were annotated.",
)
@calls("voxpopuli.prepare_slue_voxpopuli")
def slue_voxpopuli() -> None:
    """SLUE-VoxPopuli: asr, lid and ner, speeches in the European Parliament in English.

    CORPUS_DIR is the unpacked archive, slue-voxpopuli_{fine-tune,dev,test}.tsv and {fine-tune,dev,test}/*.ogg, or a
    copy of asapp/slue from the hub, voxpopuli/{train,validation,test}-*.parquet (its clips are written to OUT/audio).
    Every split that is found is prepared: OUT/cuts_{train,dev,test}.jsonl.gz, one cut per utterance, with its id in the
    corpus. The blind test set has no entities, and is labelled for asr and lid.
    """


@corpus_command("voxpopuli")
@common
@written_option
@languages_option
@calls("voxpopuli.prepare_voxpopuli")
def voxpopuli() -> None:
    """VoxPopuli: asr and lid, speeches in the European Parliament.

    CORPUS_DIR holds whole sessions, raw_audios/<language>/<year>/*.ogg or raw_audios/original/<year>/*.ogg, and the
    transcripts asr_<language>.tsv.gz (lhotse downloads missing ones); or clips,
    transcribed_data/<language>/asr_<split>.tsv as VoxPopuli's get_asr_data writes them, or data/<language>/ of
    facebook/voxpopuli on the hub, whose archives are unpacked into OUT/audio. Writes
    OUT/cuts_<split>_<language>.jsonl.gz, one cut per segment.
    """
