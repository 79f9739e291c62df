"""Transcribe any number of streams, from audio in pieces of any length to words, task tokens and times."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cached_property
from typing import Any, Dict, FrozenSet, Iterator, List, Optional, Sequence, Tuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from tokenverse_pp.base.config import SAMPLE_RATE
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions, StreamingOptions
from tokenverse_pp.decoding.constraints import Constraints, check_language_task, constraints_for
from tokenverse_pp.decoding.hypothesis import read_calibration
from tokenverse_pp.decoding.inactive import inactive_of, search_for, select
from tokenverse_pp.decoding.language_models import bonus_for
from tokenverse_pp.decoding.pauses import PauseMemory, PauseReader, pause_reader_of
from tokenverse_pp.decoding.scorer import biased_joiner
from tokenverse_pp.decoding.streaming.encoder import StreamingEncoder, StreamState
from tokenverse_pp.decoding.streaming.events import PAUSE, Event, StreamWords, WordReader, check_range
from tokenverse_pp.decoding.streaming.search import Found, SearchState, StreamingSearch
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.tasks.endp import Endpoint

OPTION = "streaming option 'tasks'"  # in error messages about the options


def trained_in_chunks(loaded: ModelBundle) -> bool:
    """Whether a model was trained with chunks (``model.streaming``); others lose words when they are streamed."""
    return any(loaded.config.model.streaming.chunk_ms)


@contextmanager
def _prefix(name: Optional[str]) -> Iterator[None]:
    """Prefix user errors with a name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}" if name else str(error)) from None


class Searcher:
    """The search of all streams that have the same options: one batch, and one set of bonuses.

    Args:
        decoded: names of the tasks decoded at the start of the streams; they determine the languages of hotwords and
            language models.
        frames: see ``decide_after`` of `StreamingSearch`.
        endpoint: see `StreamingSearch`.

    Raises:
        UserError: for hotwords, languages or a language model that the model cannot use, and unsupported options.
    """

    def __init__(
        self, loaded: ModelBundle, search: SearchOptions, decoded: Sequence[str], frames: float, endpoint: Optional[int]
    ):
        self.loaded, self.options = loaded, search
        bonus = bonus_for(search, loaded.tokenizer, loaded.tasks.subset(decoded))
        joiner = biased_joiner(loaded.model.joiner, search, loaded.tokenizer)
        self.search = StreamingSearch(loaded.model.predictor, joiner, search, bonus, frames, endpoint)
        self._constraints: Dict[Tuple[Tuple[str, ...], Optional[Tuple[str, ...]]], Constraints] = {}

    @cached_property
    def pauses(self) -> Optional[PauseReader]:
        """The reader of pauses (`pause_reader_of`), created when a stream first needs it."""
        return pause_reader_of(self.loaded, self.options)

    def constraints(self, decoded: Tuple[str, ...], languages: Optional[Tuple[str, ...]] = None) -> Constraints:
        """Return the constraints for these decoded tasks.

        Languages are restricted only with ``lid``: to those of the options, or else to ``languages``.
        """
        allowed = (self.options.languages or languages) if "lid" in decoded else None
        key = decoded, allowed
        if key not in self._constraints:
            self._constraints[key] = constraints_for(
                self.loaded.tasks, decoded, self.loaded.tokenizer, allowed, self.options.force_language
            )
        return self._constraints[key]


class Stream:
    """One stream: audio that waits for a full chunk, the states of encoder and search, the words so far."""

    def __init__(
        self, owner: Any, name: str, encoder: StreamState, searcher: Searcher, search: SearchState, words: StreamWords
    ):
        self.owner, self.name, self.searcher = owner, name, searcher
        self.encoder, self.search, self.words = encoder, search, words
        self.languages: Optional[Tuple[str, ...]] = None  # see `StreamingTranscriber.open`
        self.removed: FrozenSet[int] = frozenset()  # tokens that are stripped from its events
        self.tells_pauses = self.has_endpoints = False  # has_endpoints: the task endp is requested
        self.pause: Optional[float] = None  # the probability of an endpoint after the last chunk, while a pause lasts
        self.pause_memory = PauseMemory()
        self.waiting = torch.zeros(0)
        self.samples = 0  # decoded
        self.closed = False

    def __repr__(self) -> str:
        return f"<Stream {self.name}>"

    @property
    def seconds(self) -> float:
        """Seconds of audio decoded so far."""
        return self.samples / SAMPLE_RATE

    def check_open(self, owner: Any) -> None:
        """Check that this is an open stream of this transcriber (raises UserError)."""
        if self.owner is not owner:
            raise UserError(f"{self.name}: a stream of another transcriber")
        if self.closed:
            raise UserError(f"{self.name}: the stream is closed")

    def checked(self, audio: Any) -> Tensor:
        """Check audio, and copy it to a float32 tensor (S,) (raises UserError)."""
        try:
            samples = torch.as_tensor(audio)
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"{self.name}: audio: expected an array of floats, got {type(audio).__name__}") from None
        if not samples.is_floating_point() or samples.dim() != 1:
            kind = f"{str(samples.dtype).replace('torch.', '')} of shape {tuple(samples.shape)}"
            raise UserError(f"{self.name}: audio: expected floats of shape (samples,), got {kind}")
        samples = samples.detach().to("cpu", torch.float32, copy=True)
        if not torch.isfinite(samples).all():
            raise UserError(f"{self.name}: audio: holds NaN or infinity")
        if len(samples):
            check_range(float(samples.abs().max()), f"{self.name}: audio")
        return samples

    def pause_events(self) -> List[Event]:
        """Return the event of a pause that lasts after the last chunk, if requested."""
        return [] if self.pause is None else [Event(PAUSE, self.seconds, "", endpoint=self.pause)]

    def chunks(self, audio: Tensor, size: int) -> List[Tensor]:
        """Return the chunks that this audio completes; the rest waits."""
        whole = torch.cat([self.waiting, audio])
        count = len(whole) // size
        self.waiting = whole[count * size :].clone()  # a view would keep all of the audio in memory
        return list(whole[: count * size].split(size)) if count else []


class StreamingTranscriber:
    """Transcribes many streams with one model, each as if it were alone.

    The final words are those that a search finds in the output of the masked full pass (`Transducer.encode` with the
    same chunks), unless tasks are switched, the search is reset, or ``decide_after`` cuts a beam. Memory and time per
    chunk do not depend on the past (except with ``left_chunks=-1``, and for the text itself).

    A transcriber and its streams must be used by one thread at a time: there are no locks. The transcriber holds no
    reference to a stream, so a stream that is dropped without `close` leaves nothing behind. The model is put into eval
    mode, and must not be changed afterwards.

    Args:
        loaded: the model (`tokenverse_pp.models.bundle.load_model`), on the device to run on.

    Attributes:
        encoder: the `StreamingEncoder`, whose ``chunk_samples`` is the length of a chunk.

    Raises:
        UserError: for options with which this model cannot be streamed.
    """

    def __init__(self, loaded: ModelBundle, options: Optional[StreamingOptions] = None):
        self.loaded, self.options = loaded, options or StreamingOptions()
        model, tokenizer = loaded.model.eval(), loaded.tokenizer
        self.encoder = StreamingEncoder(model, self.options.chunks)
        self._endpoint: Optional[int] = None
        if self.options.reset_at_endpoint:
            if "endp" not in loaded.tasks:
                raise UserError("streaming option 'reset_at_endpoint': the model does not know the task 'endp'")
            self._endpoint = tokenizer.id_of(Endpoint.token)
        self.inactive = inactive_of(loaded, self.options.inactive)
        pieces = tokenizer.pieces()
        self.reader = WordReader(pieces, self.encoder.frame_shift, read_calibration(loaded.folder))
        self.opened = 0
        # A searcher is freed when no stream uses its options any more.
        self._searchers: WeakValueDictionary[Tuple[Any, ...], Searcher] = WeakValueDictionary()
        names = self.options.tasks or loaded.tasks.names
        self._default = self._searcher(self.options.search, names)  # kept even while no stream uses it
        self._activate(names, self._default)

    def open(
        self,
        tasks: Optional[Sequence[str]] = None,
        name: Optional[str] = None,
        search: Optional[SearchOptions] = None,
        pauses: Optional[bool] = None,
        languages: Optional[Sequence[str]] = None,
    ) -> Stream:
        """Open a stream.

        Args:
            tasks: names of the tasks to decode; None for those of the options.
            name: used in errors; None for a number.
            search: how to search, e.g. with other languages, hotwords or another language model. Streams of all options
                share the batches of the encoder. None for the transcriber's options, without their languages and folder
                of language models if the stream does not decode ``lid``.
            pauses: report the probability of an endpoint while a pause lasts, if ``endp`` is decoded; None for the
                setting of the options.
            languages: those that the stream may write whenever it decodes ``lid``, also if that is switched on later,
                unless ``search`` has its own. None for those of the transcriber's options if ``search`` is None, else
                for all.

        Raises:
            UserError: for a task that the model does not know, and options of the search that it cannot use.
        """
        wanted = tuple((self.options.tasks or self.loaded.tasks.names) if tasks is None else tasks)
        self.opened += 1
        name = name or f"stream {self.opened}"
        if search is None:
            search = search_for(wanted, self.options.search, self.inactive)
            languages = self.options.search.languages if languages is None else languages
        bound = None if languages is None else tuple(languages)
        searcher = self._searcher(search, wanted, name)
        active, constraints, removed = self._activate(wanted, searcher, name, bound)
        state = searcher.search.start(constraints)
        stream = Stream(self, name, self.encoder.start(active), searcher, state, StreamWords(self.reader))
        stream.languages, stream.removed = bound, removed
        stream.tells_pauses = self.options.pauses if pauses is None else pauses
        stream.has_endpoints = "endp" in wanted
        return stream

    def push(self, stream: Stream, audio: Any) -> List[Event]:
        """Transcribe more audio of a stream.

        Args:
            audio: (S,) floats at 16 kHz in [-1, 1], a NumPy array or tensor of any length, zero included.

        Returns:
            The new events: none until a chunk is full. The events of a stream do not depend on how its audio is cut
            into pieces.

        Raises:
            UserError: naming the stream, if it is closed, or for audio that contains NaN or infinity, is not a 1-D
                array of floats, or is far outside [-1, 1]. The stream is then unchanged.
        """
        return self.push_many([(stream, audio)])[0]

    def push_many(self, pieces: Sequence[Tuple[Stream, Any]]) -> List[List[Event]]:
        """`push` for several streams, each at most once, in one batch.

        After an error (see `push`) all streams are unchanged, also if the encoder gives NaN for one of their first
        chunks.
        """
        streams = [stream for stream, _ in pieces]
        for stream in streams:
            stream.check_open(self)
        if len({id(stream) for stream in streams}) < len(streams):
            twice = next(stream.name for stream in streams if streams.count(stream) > 1)
            raise UserError(f"{twice}: the stream is given twice")
        checked = [stream.checked(audio) for stream, audio in pieces]
        before = [stream.waiting for stream in streams]
        waiting = [stream.chunks(audio, self.encoder.chunk_samples) for stream, audio in zip(streams, checked)]
        events: List[List[Event]] = [[] for _ in pieces]
        for turn in range(max(map(len, waiting), default=0)):
            rows = [row for row, chunks in enumerate(waiting) if turn < len(chunks)]
            try:
                found = self._step([streams[row] for row in rows], [waiting[row][turn] for row in rows], last=False)
            except UserError:
                if turn == 0:
                    for stream, audio in zip(streams, before):
                        stream.waiting = audio
                raise
            for row, one in zip(rows, found):
                events[row].extend(streams[row].words.hear(one.settled, one.open, streams[row].seconds))
                events[row].extend(streams[row].pause_events())
        return events

    def set_tasks(self, stream: Stream, tasks: Sequence[str]) -> None:
        """Decode these tasks from the stream's next chunk on: the one that is not complete yet.

        The constraints of the search continue from the text so far: an ``[NE]`` that is open when ``ner`` is switched
        off is given up (it is never closed, and `parse` drops it); if ``ner`` stays on, it stays open. A language token
        comes before all other text (with ``force_language=False`` it is optional there), also if ``lid`` is switched on
        before anything is written; a stream that has written something writes none any more. With ``inactive=strip``
        all tasks are always decoded: only the tokens in the events change, starting with the first token that is not
        final yet; a language token that the search wrote before is not bound to the stream's languages. A pause that
        lasts goes on; if ``endp`` is switched on in it, the frames from there on count.

        Raises:
            UserError: naming the stream, if it is closed, or for a task that the model does not know.
        """
        stream.check_open(self)
        active, constraints, stream.removed = self._activate(tasks, stream.searcher, stream.name, stream.languages)
        stream.has_endpoints = "endp" in tasks
        stream.pause = None
        stream.encoder = stream.encoder.switched(active)
        stream.search = stream.searcher.search.change(stream.search, constraints)

    def close(self, stream: Stream) -> List[Event]:
        """Close a stream: its remaining audio is transcribed, all tokens become final, and the last event is ``end``.

        Raises UserError if the stream is closed already.
        """
        stream.check_open(self)
        found = self._step([stream], [stream.waiting], last=True)[0]
        stream.closed, stream.waiting = True, torch.zeros(0)
        *events, end = stream.words.end([*found.settled, *found.open], stream.seconds)
        return [*events, *stream.pause_events(), end]

    def _searcher(self, search: SearchOptions, tasks: Sequence[str], name: Optional[str] = None) -> Searcher:
        """Return the searcher of streams that begin with these options and tasks (raises UserError)."""
        with _prefix(name or OPTION):
            decoded = select(self.loaded.tasks, tasks, self.loaded.tokenizer, self.inactive).decoded
        with _prefix(name):
            check_language_task(self.loaded.tasks.subset(tasks), search.languages)
            key = (search, decoded if search.earns else ())
            found = self._searchers.get(key)
            if found is None:
                frames = self.options.decide_after / self.encoder.frame_shift
                found = self._searchers[key] = Searcher(self.loaded, search, decoded, frames, self._endpoint)
            found.constraints(decoded)
        return found

    def _activate(
        self, tasks: Sequence[str], searcher: Searcher, name: str = OPTION, languages: Optional[Tuple[str, ...]] = None
    ) -> Tuple[Tensor, Constraints, FrozenSet[int]]:
        """Return tasks for the encoder (K + 1,), search constraints, and tokens to strip (raises UserError)."""
        known = self.loaded.tasks
        with _prefix(name):
            names, removed = select(known, tasks, self.loaded.tokenizer, self.inactive)
            constraints = searcher.constraints(names, languages if "lid" in tasks else None)
            active = torch.tensor(known.mask(names), dtype=torch.float32, device=self.encoder.device)
            for vectors in self.loaded.model.task_vectors:
                vectors(active[None])  # refuses a combination that was never trained
        return active, constraints, removed

    def _step(self, streams: Sequence[Stream], chunks: Sequence[Tensor], last: bool) -> List[Found]:
        """Run encoder and search on one chunk of each stream."""
        outs, encoders = self.encoder.step(chunks, [stream.encoder for stream in streams], [last] * len(streams))
        # One look at the device for all streams.
        finite = torch.stack([torch.isfinite(out).all() for out in outs]).tolist()
        bad = [stream.name for stream, is_finite in zip(streams, finite) if not is_finite]
        if bad:
            raise UserError(f"{', '.join(bad)}: the encoder gave NaN or infinity; are the model's weights finite?")
        together: Dict[Searcher, List[int]] = {}
        for row, stream in enumerate(streams):
            together.setdefault(stream.searcher, []).append(row)
        found: Dict[int, Found] = {}
        for searcher, rows in together.items():
            states = [streams[row].search for row in rows]
            some, after = searcher.search.step([outs[row].float() for row in rows], states)
            for row, one, state in zip(rows, some, after):
                found[row], streams[row].search = one, state
            asked = [i for i, row in enumerate(rows) if streams[row].tells_pauses]
            if not asked or searcher.pauses is None:
                continue
            told = [i for i in asked if streams[rows[i]].has_endpoints]
            for i in set(asked).difference(told):  # the task may be switched on later
                stream = streams[rows[i]]
                stream.pause_memory = searcher.pauses.follow(some[i], stream.pause_memory)
            if told:
                pauses, memories = searcher.pauses.step(
                    [outs[rows[i]].float() for i in told],
                    [states[i].frames for i in told],
                    [some[i] for i in told],
                    [streams[rows[i]].pause_memory for i in told],
                )
                for i, pause, memory in zip(told, pauses, memories):
                    streams[rows[i]].pause, streams[rows[i]].pause_memory = pause, memory
        for stream, chunk, encoder in zip(streams, chunks, encoders):
            stream.encoder = encoder
            stream.samples += len(chunk)
        return [
            Found(*([token for token in tokens if token.id not in stream.removed] for tokens in found[row]))
            for row, stream in enumerate(streams)
        ]
