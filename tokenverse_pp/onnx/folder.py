"""The folder that `tokenverse-pp export` writes, and how it is read.

`Description` is the content of ``export.json`` and of the metadata of each graph.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, List, Optional, Union, get_args, get_origin, get_type_hints

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import damage_of, is_finite, json_of

# Third-party packages that the runtime imports; soundfile is only needed to read files.
PACKAGES = ("onnxruntime", "numpy", "sentencepiece", "soundfile", "langcodes")
DESCRIPTION = "export.json"
TOKENIZER = "tokenizer.model"
TOKENS = "tokens.txt"  # sherpa-onnx: the vocabulary
ENCODER, PREDICTOR, JOINER = "encoder.onnx", "predictor.onnx", "joiner.onnx"
FIRST = "encoder_first.onnx"  # streaming: the encoder of a stream's first chunk
WEIGHTS = "encoder.weights"  # the weights of several encoders
MEL_FILTERS = "mel_filters.npy"
FORMAT = 1  # raised when an older runtime would misread a folder
LOG_MEL, AUDIO = "log_mel", "audio"


@dataclass(frozen=True)
class Description:
    """Data that decoding needs besides the graphs.

    Attributes:
        tokenverse_pp: version of the package that wrote the folder.
        tasks: names of the model's tasks, in the order of the columns of ``active``.
        task_options: options of the tasks, as `tokenverse_pp.tasks.build_tasks` takes them (languages, entity types).
        vocab_size: V, with the blank.
        context_size: tokens that the predictor sees; 1 with an LSTM.
        joiner_dim: J, the width of the joiner's inputs.
        frame_shift: seconds per encoder frame.
        input: input of the encoder: ``audio`` or ``log_mel``.
        min_samples: fewest samples of an utterance that give a frame.
        max_samples: most samples of an utterance; None: no limit.
        normalise: whether the encoder itself normalises each utterance to zero mean and unit variance.
        vectors: placement, strategy, code and scale of the task vectors, which the graphs apply to ``active``; with
            ``combination``, the combinations that were trained (each a row of ``active``). ``inactive``: default
            treatment of tasks that are not requested (`tokenverse_pp.decoding.inactive`).
        precision: precision of the weights: float32, float16 or int8.
        streaming: None for whole utterances. ``chunk_ms``, ``left_chunks`` and ``sinks``: options of the export;
            ``chunk_samples``: samples of a chunk; ``framing``: kernel and stride of each step from samples to frames,
            (n - kernel) // stride + 1 each; ``states``: name, shape and type of each state, zeros at the start.
        sherpa: None for `tokenverse_pp.runtime`. For sherpa-onnx: the ``form`` and the tasks of each encoder
            (``sets``); with ``online`` and ``prompt`` also the delay of times in frames (``delay``) and the options
            of the chunks; with ``prompt`` also the sets of tasks, by the names that streams use (``prompts``).
        mel: bins, n_fft and hop of ``log_mel``.
        lstm: layers and dimension of an LSTM predictor; None for a stateless predictor.
        symbols_per_frame: most symbols that greedy search emits per frame.
        files: bytes and SHA-256 of each file.
        check: result of the comparison with torch, and the tolerance.
    """

    tokenverse_pp: str
    tasks: List[str]
    task_options: Dict[str, Dict[str, Any]]
    symbols: List[str]
    vocab_size: int
    blank: int
    context_size: int
    joiner_dim: int
    frame_shift: float
    input: str
    min_samples: int
    max_samples: Optional[int]
    normalise: bool
    vectors: Dict[str, Any]
    precision: str
    streaming: Optional[Dict[str, Any]] = None
    sherpa: Optional[Dict[str, Any]] = None
    mel: Optional[Dict[str, int]] = None
    lstm: Optional[List[int]] = None
    symbols_per_frame: int = 1
    files: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    check: Dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def languages(self) -> List[str]:
        """The language codes that the model can write."""
        return list(self.task_options.get("lid", {}).get("languages", []))

    def as_dict(self) -> Dict[str, Any]:
        """The contents of ``export.json``, ``format`` first."""
        values = asdict(self)
        return {"format": values.pop("format"), "languages": self.languages, **values}

    def save(self, folder: Path) -> None:
        """Write ``export.json``."""
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"
        (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def read_folder(folder: Union[str, Path], check_files: bool = True, sherpa: bool = False) -> Description:
    """Read ``export.json``, and verify the checksums of the folder's files.

    Args:
        folder: a folder that `tokenverse-pp export` wrote.
        sherpa: whether to expect an export for sherpa-onnx, not one for `tokenverse_pp.runtime`.

    Raises:
        UserError: if the folder is not such an export or is of another version, or files are missing or damaged.
    """
    path = Path(folder) / DESCRIPTION
    try:
        data = json_of(path.read_text(encoding="utf-8"), f"{path}: cannot be read")
    except FileNotFoundError:
        said = f"{path.parent}: no exported model: it has no {DESCRIPTION} (`tokenverse-pp export` makes one)"
        raise UserError(said) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise UserError(f"{path}: not what `tokenverse-pp export` writes: it has no number 'format'")
    if data["format"] != FORMAT:
        said = f"has format {data['format']}, this version of tokenverse_pp reads {FORMAT}: export again"
        raise UserError(f"{path}: {said}")
    names = {item.name for item in fields(Description)}
    try:
        description = Description(**{name: value for name, value in data.items() if name in names})
        for name, kind in get_type_hints(Description).items():
            if not _is_of(kind, getattr(description, name)):
                raise ValueError(f"{name}: {getattr(description, name)!r:.60}")
        if description.input not in (LOG_MEL, AUDIO) or (description.input == LOG_MEL) != bool(description.mel):
            raise ValueError("input")
        if bool(description.sherpa) != sherpa:
            made = ("tokenverse_pp.runtime", "sherpa-onnx")
            raise UserError(f"{path.parent}: exported for {made[not sherpa]}, not for {made[sherpa]}: export it again")
        needed = {TOKENIZER, ENCODER, PREDICTOR, JOINER} if description.sherpa is None else description.sherpa["sets"]
        if not {*needed} <= set(description.files):
            raise ValueError("files")
        for name in description.files:
            if Path(name).name != name:
                raise ValueError(f"files: {name!r} is not the name of a file in the folder")
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: damaged: {error}") from None
    if check_files:
        for name, entry in description.files.items():
            if not {"bytes", "sha256"} <= set(entry):
                raise UserError(f"{path}: damaged: no sum of {name}")
            problem = damage_of(path.parent / name, entry)
            if problem:
                raise UserError(problem)
    return description


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a JSON value matches the annotation of a field."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Union:
        return any(_is_of(part, value) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_is_of(parts[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_of(parts[1], item) for item in value.values())
    if kind is float:
        return is_finite(value)
    return kind is Any or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool)))
