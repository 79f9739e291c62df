"""`TokenVerse`: a trained model, ready to transcribe; `RecognizerJob`: the same in the workers of a cluster."""

from __future__ import annotations

import copy
import dataclasses
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union, overload

import numpy as np
import torch
from lhotse import Recording
from lhotse.cut import Cut

import tokenverse_pp
from tokenverse_pp.api.folders import DEFAULT, PathLike, locate_encoder, locate_model, save_model
from tokenverse_pp.api.transcribing import ProgressBars, Result, decode_options, transcribe_in_order
from tokenverse_pp.base.config_files import load_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import (
    Autocast,
    DecodeOptions,
    Hotword,
    Inactive,
    Method,
    Names,
    SearchOptions,
    TranscribeOptions,
)
from tokenverse_pp.data.access import SourceAccess, allow_sources, current_access
from tokenverse_pp.data.audio.inputs import Heard, Refused, is_single, open_audio, open_or_refuse, several
from tokenverse_pp.data.dataset import SAMPLING_RATE
from tokenverse_pp.decoding.recognizer import Recognizer
from tokenverse_pp.decoding.run import run_digest
from tokenverse_pp.models.bundle import ModelBundle, load_model, tasks_of
from tokenverse_pp.models.checkpoint import CONFIG
from tokenverse_pp.tasks import load_plugins
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.result import Transcript

Single = Union[str, Path, bytes, np.ndarray, torch.Tensor, Tuple[Any, float], Mapping[str, Any], Cut, Recording]


class TokenVerse:
    """A trained model with its tasks and vocabulary.

    >>> model = TokenVerse.from_pretrained(folder)
    >>> model.tasks, model.languages, model.sample_rate
    (('asr', 'scd', 'endp', 'ner', 'lid'), ('qaa', 'qab'), 16000)
    >>> heard = model.transcribe(audio_file)
    >>> heard.language in model.languages, heard.name, heard.duration > 1
    (True, 'speech', True)
    >>> model.transcribe(audio_file, tasks=["asr"]).raw == model.transcribe(audio_file, tasks=["asr"]).text
    True

    Args:
        loaded: the result of `tokenverse_pp.models.bundle.load_model`.
        encoder_name: the encoder's name in the model's configuration, if it was found elsewhere.
        precision: default precision of `transcribe`.
    """

    def __init__(self, loaded: ModelBundle, encoder_name: Optional[str] = None, precision: Autocast = "fp32"):
        self.loaded = loaded
        self.precision = precision
        self._encoder_name = encoder_name if encoder_name is not None else loaded.config.model.encoder.name

    @classmethod
    def from_pretrained(
        cls,
        model: PathLike = DEFAULT,
        encoder: Optional[PathLike] = None,
        device: str = "auto",
        precision: Autocast = "fp32",
        revision: Optional[str] = None,
        plugins: Sequence[PathLike] = (),
        trust_plugins: bool = False,
    ) -> TokenVerse:
        """Load a model.

        >>> TokenVerse.from_pretrained("no/such-model")
        Traceback (most recent call last):
        tokenverse_pp.base.errors.UserError: no/such-model: there is no such folder, and the Hugging Face hub cannot \
be reached (nor is a model of that name in its local cache)

        Args:
            model: a folder (of a model, a checkpoint or an experiment), the name of a model that is part of the
                package (``human-speech``), or the id of one on the Hugging Face hub.
            encoder: the folder of its pretrained encoder, if the model does not contain it and it is neither in the
                model's folder nor in the working directory under its name. Whisper-base is built from the packages of
                the extra ``human-speech`` on first use (docs/api.md).
            device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ..
            precision: precision of the encoder: ``fp32``, ``bf16`` or ``fp16``.
            revision: branch, tag or commit on the hub.
            plugins: Python files (or modules) with your own tasks that the model has. They are run.
            trust_plugins: run the task files that the model itself names: code of its author (docs/security.md).

        Raises:
            UserError: in one line: no such model, a task whose code is not run, a damaged file, a vocabulary or weights
                that do not fit the configuration, no encoder, a hub or device that cannot be reached.
        """
        where = device_of(device)
        load_plugins([str(plugin) for plugin in plugins])
        loaded, name = load_named(model, encoder, trust_plugins, revision)
        loaded.model.to(where)
        return cls(loaded, name, precision)

    @property
    def tasks(self) -> Tuple[str, ...]:
        """Names of the model's tasks."""
        return self.loaded.tasks.names

    @property
    def languages(self) -> Tuple[str, ...]:
        """Codes of the languages that the model can write; empty without the task ``lid``."""
        return self.loaded.tasks.languages

    @property
    def entity_types(self) -> Tuple[str, ...]:
        """Entity types that the model can write; empty if entities are untyped or not decoded."""
        tasks = self.loaded.tasks
        return tuple(tasks["ner"].options().get("types", ())) if "ner" in tasks else ()

    @property
    def sample_rate(self) -> int:
        """The model's sampling rate in Hz; `transcribe` accepts audio of any rate."""
        return SAMPLING_RATE

    @property
    def frame_shift(self) -> float:
        """Seconds per encoder output frame; times are multiples of it."""
        return float(self.loaded.model.encoder.output_frame_shift)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.loaded.model.parameters()).device

    def to(self, device: str) -> TokenVerse:
        """Move the model to a device (raises UserError)."""
        self.loaded.model.to(device_of(device))
        return self

    def __repr__(self) -> str:
        return f"TokenVerse({str(self.loaded.folder)!r}, tasks={self.tasks}, languages={self.languages})"

    @overload
    def transcribe(self, audio: Single, *arguments: Any, **options: Any) -> Transcript: ...  # type: ignore[overload-overlap]

    @overload
    def transcribe(self, audio: Iterable[Any], *arguments: Any, **options: Any) -> List[Transcript]: ...

    def transcribe(
        self,
        audio: Any,
        tasks: Optional[Names] = None,
        language: Optional[Names] = None,
        hotwords: Optional[Union[PathLike, List[Hotword]]] = None,
        *,
        sample_rate: Optional[float] = None,
        method: Optional[Method] = None,
        beam: Optional[int] = None,
        search: Optional[SearchOptions] = None,
        batch_seconds: float = 120.0,
        inactive: Optional[Inactive] = None,
        pauses: bool = False,
        progress: bool = False,
    ) -> Union[Transcript, List[Transcript]]:
        """Transcribe one recording, or several.

        >>> model = TokenVerse.from_pretrained(folder)
        >>> [heard.name for heard in model.transcribe([audio_file, samples], method="greedy", progress=False)]
        ['speech', 'audio 2']
        >>> model.transcribe(samples, sample_rate=16000, language="qab").language
        'qab'
        >>> model.transcribe(samples, tasks=["dancing"])
        Traceback (most recent call last):
        tokenverse_pp.base.errors.UserError: tasks: task 'dancing': this model knows asr, scd, endp, ner, lid

        Audio can have any length, rate and number of channels: channels are averaged, and audio longer than 28 s is
        decoded in windows (docs/long_audio.md).

        Args:
            audio: a path; samples (an array or tensor; ``(samples, rate)``; what Hugging Face's datasets give); bytes
                of a file; a lhotse cut or recording. Or a list, an iterator or a CutSet of these.
            tasks: names of the tasks to decode (default: all); no tokens of other tasks are written.
            language: the spoken language, if it is known.
            hotwords: phrases to prefer.
            sample_rate: of samples that come without one; None for 16 kHz.
            method: search method.
            beam: number of hypotheses kept.
            search: all options of the search.
            batch_seconds: seconds of audio in a batch.
            inactive: how other tasks are handled, ``suppress`` or ``strip``: see `TranscribeOptions`.
            pauses: also give the probability of an endpoint after each word (`Transcript.pauses`; with the task
                ``endp``).
            progress: show progress bars on stderr: recordings, and windows of a long one.

        Returns:
            A `Transcript`, or a list of them in order.

        Raises:
            UserError: for options that do not fit the model, and for the first recording that cannot be decoded
                (`transcribe_each` continues after it).
        """
        options = TranscribeOptions(
            *(tasks, language, hotwords, method, beam, search, batch_seconds),
            precision=self.precision,
            inactive=inactive,
            pauses=pauses,
        )
        if is_single(audio):
            return _whole(next(iter(self._results([open_audio(audio, sample_rate)], options, progress))))
        results = self.transcribe_each(several(audio), options, sample_rate=sample_rate, progress=progress)
        return [_whole(result) for result in results]

    def transcribe_each(
        self,
        audios: Iterable[Any],
        options: Optional[TranscribeOptions] = None,
        *,
        sample_rate: Optional[float] = None,
        progress: bool = False,
    ) -> Iterator[Result]:
        """Transcribe an iterable lazily, a few batches at a time, so that not all audio has to fit into memory.

        Args:
            audios: as for `transcribe`, or already opened (`inputs.open_audio`).
            options: options of the transcription.
            sample_rate: of samples that come without one; None for 16 kHz.
            progress: show progress bars on stderr: recordings, and windows of a long one.

        Returns:
            An iterator with one `Transcript` per recording, in order, or a `Refused` with the reason for a recording
            that cannot be decoded.

        Raises:
            UserError: for options that do not fit the model.
        """
        options = options or TranscribeOptions(precision=self.precision)
        items = (open_or_refuse(audio, sample_rate, number) for number, audio in enumerate(audios, start=1))
        return self._results(items, options, progress)

    def _results(
        self, items: Iterable[Union[Heard, Refused]], options: TranscribeOptions, show: bool
    ) -> Iterator[Result]:
        decoder = Recognizer(self.loaded, decode_options(options, self.loaded.tasks))
        if not show:
            return transcribe_in_order(decoder, items)
        bars = ProgressBars()
        return bars.over(transcribe_in_order(decoder, items, bars.on_windows))

    def save_pretrained(self, folder: PathLike, include_encoder: bool = False, half: bool = False) -> Path:
        """Write the model as a folder: config.yaml, tokenizer.model, model.safetensors, README.md, calibration.json.

        >>> model = TokenVerse.from_pretrained(folder)
        >>> saved = model.save_pretrained(new_folder, include_encoder=True)
        >>> sorted(path.name for path in saved.iterdir())  # doctest: +NORMALIZE_WHITESPACE
        ['README.md', 'checksums.json', 'config.yaml', 'encoder', 'model.safetensors', 'tokenizer.model']
        >>> TokenVerse.from_pretrained(saved).transcribe(samples) == model.transcribe(samples)
        True

        Args:
            folder: a new or empty folder, or a model folder, which is replaced. It is written completely or not at
                all.
            include_encoder: also copy the folder of an encoder that is frozen, even in part (``kind: split``), so that
                nothing else is needed. An encoder that is trained as a whole is always included.
            half: write the weights in float16.

        Raises:
            UserError: if the folder cannot be written or contains something else.
        """
        target = Path(folder).expanduser()
        config = copy.deepcopy(self.loaded.config)
        source = Path(config.model.encoder.name)
        loaded = dataclasses.replace(self.loaded, config=config)
        save_model(loaded, target, self._encoder_name, source if source.is_dir() else None, include_encoder, half)
        return target

    def push_to_hub(self, repository: str, include_encoder: bool = False, private: bool = False, **save: Any) -> str:
        """Save the model to the Hugging Face hub, which needs a login; return its address (raises UserError)."""
        import tempfile

        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        from tokenverse_pp.models.encoders.kinds import hub_reachable

        if not hub_reachable():
            raise UserError(f"{repository}: the Hugging Face hub cannot be reached")
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.save_pretrained(Path(temporary) / "model", include_encoder, **save)
            try:
                hub = huggingface_hub.HfApi()
                hub.create_repo(repository, private=private, exist_ok=True)
                done = hub.upload_folder(repo_id=repository, folder_path=folder)
            except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
                raise UserError(f"{repository}: the hub refused: {' '.join(str(error).split())[:200]}") from error
        return str(done)


def load_named(
    model: PathLike, encoder: Optional[PathLike] = None, trust_plugins: bool = False, revision: Optional[str] = None
) -> Tuple[ModelBundle, str]:
    """Load a model on the CPU; return it and its encoder's name. See `TokenVerse.from_pretrained`."""
    folder = locate_model(model, revision)
    name = read_config(folder).model.encoder.name
    found = locate_encoder(name, folder, encoder)
    try:
        with torch.random.fork_rng(devices=[]):  # building a model sets the seed
            return load_model(folder, found, trust_plugins, foreign=not encoder), name
    except UserError as error:
        if not str(error).startswith("encoder.name"):
            raise
        raise UserError(f"{folder}: {error}; say where its encoder is: encoder= (--encoder)") from error


@dataclass(frozen=True)
class RecognizerJob:
    """Loads a recognizer in a worker of a cluster, and computes shards with it; the ``start`` of a `ShardEngine`.

    Attributes:
        compute: called with the recognizer and a shard; its result is plain JSON.
        digest: digest of model and options on the machine of the command (`run_digest`).
        threads: CPU threads; other numbers may round differently.
    """

    compute: Callable[[Recognizer, Any], Dict[str, Any]]
    model: PathLike
    encoder: Optional[PathLike]
    options: DecodeOptions
    digest: str
    plugins: Tuple[str, ...] = ()
    trust_plugins: bool = False
    device: str = "auto"
    threads: int = field(default_factory=torch.get_num_threads)
    access: SourceAccess = field(default_factory=current_access)
    host: str = field(default_factory=socket.gethostname)

    def __call__(self) -> Callable[[Any], Dict[str, Any]]:
        """Load the model; return the function that computes a shard (raises UserError, also if the model differs)."""
        torch.set_num_threads(self.threads)
        where = device_of(self.device)
        load_plugins(self.plugins)
        loaded, _ = load_named(self.model, self.encoder, self.trust_plugins)
        if run_digest(loaded, self.options) != self.digest:
            here = socket.gethostname()
            raise UserError(f"model, encoder or options: on {here} they differ from those on {self.host}")
        loaded.model.to(where)
        decoder = Recognizer(loaded, self.options)

        def compute(shard: Any) -> Dict[str, Any]:
            with allow_sources(self.access.commands, self.access.urls):
                return self.compute(decoder, shard)

        return compute


def device_of(name: str) -> torch.device:
    """Return the device of a name, or with ``auto`` the GPU if there is one (raises UserError)."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {name!r}: cannot be used: {str(error).splitlines()[0][:200]}") from None
    return device


def read_config(folder: Path) -> Any:
    """The configuration of a model folder (raises UserError; an unknown key most likely comes from another version)."""
    try:
        return load_config(folder / CONFIG)
    except UserError as error:
        if "unknown key" not in str(error):
            raise
        version = tokenverse_pp.__version__
        raise UserError(f"{error}: was it made by another version of tokenverse_pp? This is {version}") from None


def known_tasks(model: PathLike = DEFAULT, trust_plugins: bool = False) -> TaskSet:
    """The tasks of a model, without loading it (raises UserError)."""
    folder = locate_model(model)
    return tasks_of(read_config(folder).tasks, trust_plugins, folder)


def _whole(result: Result) -> Transcript:
    if isinstance(result, Refused):
        raise UserError(result.reason)
    return result
