"""The three graphs in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from tokenverse_pp.errors import UserError, one_line
from tokenverse_pp.runtime.folder import ENCODER, JOINER, PREDICTOR

MOST_STATES = 4096  # of the predictor's, kept


def open_graph(path: Path, threads: int) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU.

    Raises:
        UserError: without onnxruntime, or for a file that is no graph that it can run.
    """
    try:
        import onnxruntime
    except Exception as error:  # one that is there may fail in other ways than ImportError
        said = f"tokenverse_pp.runtime needs onnxruntime ({one_line(error)}): pip install 'tokenverse_pp[onnx]'"
        raise UserError(said) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3  # errors alone
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen exceptions of its own, without a common base
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a graph that onnxruntime can run: {reason}") from None


class Predictor:
    """Contexts (tuples of ``context_size`` ids, the newest last) -> states (M, J), each computed once."""

    def __init__(self, folder: Path, threads: int):
        self.session = open_graph(folder / PREDICTOR, threads)
        self.known: Dict[Tuple[int, ...], np.ndarray] = {}

    def __call__(self, contexts: Sequence[Tuple[int, ...]]) -> np.ndarray:
        """States (M, J) float32 of M contexts."""
        missing = [context for context in dict.fromkeys(contexts) if context not in self.known]
        if missing:
            if len(self.known) > MOST_STATES:
                self.known.clear()
                missing = list(dict.fromkeys(contexts))
            states = self.session.run(None, {"context": np.array(missing, dtype=np.int64)})[0]
            self.known.update(zip(missing, states))
        return np.stack([self.known[context] for context in contexts])


class Joiner:
    """Frames (M, J) and states (M, J) -> logits (M, V)."""

    def __init__(self, folder: Path, threads: int):
        self.session = open_graph(folder / JOINER, threads)

    def __call__(self, frames: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Logits (M, V) float32."""
        return self.session.run(None, {"frame": frames, "state": states})[0]


class Encoder:
    """A padded batch -> projected frames (N, T, J) and their numbers (N,)."""

    def __init__(self, folder: Path, threads: int):
        self.session = open_graph(folder / ENCODER, threads)
        self.names: List[str] = [item.name for item in self.session.get_inputs()]

    def __call__(self, inputs: np.ndarray, lens: np.ndarray, active: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Inputs (N, S) audio or (N, bins, T) log-mel, lens (N,) samples, active (N, K + 1) of 0 and 1."""
        given = dict(zip(("inputs", "lens", "active"), (inputs, lens, active)))
        # A model without task vectors has no use for `active`, and its graph no such input.
        frames, frame_lens = self.session.run(None, {name: given[name] for name in self.names})
        return frames, frame_lens
