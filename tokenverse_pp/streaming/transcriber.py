"""Audio of any number of streams in, in pieces of any length; words, task tokens and times out as they are found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

from tokenverse_pp.search.options import SearchOptions
from tokenverse_pp.streaming.events import Event
from tokenverse_pp.training.setup import Loaded

if TYPE_CHECKING:
    from tokenverse_pp.model.masks import ChunkOptions


def _default_chunks() -> ChunkOptions:
    from tokenverse_pp.model.masks import ChunkOptions

    return ChunkOptions()


@dataclass(frozen=True)
class StreamingOptions:
    """How to transcribe streams.

    Args:
        chunks: how much audio the encoder takes at a time, and how far it looks back.
        tasks: names of the tasks that a stream decodes if it does not say otherwise; none for all.
        search: its method is ``greedy`` or ``beam``.
        reset_at_endpoint: as soon as the best hypothesis writes ``[ENDP]`` it becomes final, and search goes on as at a
            stream's start. The encoder's context goes on in any case.
    """

    chunks: ChunkOptions = field(default_factory=_default_chunks)
    tasks: Tuple[str, ...] = ()
    search: SearchOptions = field(default_factory=lambda: SearchOptions(method="greedy"))
    reset_at_endpoint: bool = False


class Stream:
    """One stream of a transcriber: a handle to give back to it. ``name`` is what errors call it."""

    name: str


class StreamingTranscriber:
    """Transcribes many streams with one model, each as if it were alone.

    A transcriber and its streams belong to one thread at a time: it takes no locks. It holds no reference to a stream,
    so one that is dropped without `close` leaves nothing behind.

    Args:
        loaded: the model (`tokenverse_pp.training.setup.load_model`), on the device that it is to run on.
        options: how to transcribe.
    """

    def __init__(self, loaded: Loaded, options: Optional[StreamingOptions] = None):
        raise NotImplementedError("in work")

    def open(self, tasks: Optional[Sequence[str]] = None, name: Optional[str] = None) -> Stream:
        """A new stream.

        Args:
            tasks: names of the tasks to decode; None for those of the options.
            name: for errors; None for a number.

        Raises:
            UserError: for a task that the model does not know.
        """
        raise NotImplementedError("in work")

    def push(self, stream: Stream, audio: Any) -> List[Event]:
        """Hear more of a stream.

        Args:
            stream: from `open`.
            audio: (S,) floats at 16 kHz in [-1, 1], a NumPy array or tensor of any length, none included.

        Returns:
            What can be said now: nothing until a chunk is full. The events of a stream do not depend on the lengths of
            the pieces in which its audio comes.

        Raises:
            UserError: naming the stream, if it is closed, or for audio that holds NaN or infinity, is no 1-D array of
                floats, or is far out of [-1, 1]. The stream is as it was before.
        """
        return self.push_many([(stream, audio)])[0]

    def push_many(self, pieces: Sequence[Tuple[Stream, Any]]) -> List[List[Event]]:
        """Hear more of several streams, which run through the model as one batch.

        Args:
            pieces: streams, each once, with their audio (see `push`).

        Returns:
            For each of them what `push` gives, in the same order.

        Raises:
            UserError: see `push`. Then no stream has heard anything.
        """
        raise NotImplementedError("in work")

    def set_tasks(self, stream: Stream, tasks: Sequence[str]) -> None:
        """Decode these tasks from the stream's next chunk on.

        Raises:
            UserError: naming the stream, if it is closed, or for a task that the model does not know.
        """
        raise NotImplementedError("in work")

    def close(self, stream: Stream) -> List[Event]:
        """Hear what is left in the stream's last chunk, and end it: what is left becomes final, then comes ``end``.

        Raises:
            UserError: if it is closed already.
        """
        raise NotImplementedError("in work")
