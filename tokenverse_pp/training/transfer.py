"""Start from a model without some tasks or languages of the new run (task transfer; docs/transfer.md).

Token ids, rows of old tokens and vectors of old tasks are kept. New rows are initialised so that the model's output
does not change as long as the new tasks are inactive.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from tokenverse_pp.base.config import Config, TrainingConfig, VectorsConfig
from tokenverse_pp.base.config_files import load_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.distributed import gathered
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import PRETRAINED, find_model, tasks_of
from tokenverse_pp.models.encoders import EncoderConfig
from tokenverse_pp.models.encoders.base import Backbone
from tokenverse_pp.models.pretrained_transducer import config_of, read_vocabulary, read_weights
from tokenverse_pp.models.transducer import Transducer, recoded
from tokenverse_pp.tasks import TaskSet

State = Dict[str, Tensor]
# Parameters with a row for each token of the vocabulary.
VOCABULARY_ROWS = tuple(
    f"{module}.{kind}" for module in ("joiner.output", "simple_am", "simple_lm", "ctc") for kind in ("weight", "bias")
) + ("predictor.embedding.weight",)
TABLES = ("feature_vectors", "encoder_vectors")
AUXILIARY = ("ctc", *TABLES)  # parts that one model may have and another not
PLACES = {"none": (), "features": TABLES[:1], "encoder": TABLES[1:], "both": TABLES}


@dataclass(frozen=True)
class Before:
    """A model as it was before the run: size of the vocabulary, tasks in order, auxiliary parts."""

    vocabulary: int
    tasks: List[str]
    tables: List[str]  # of task vectors
    ctc: bool = True  # had a CTC head; older state.json files do not say


@dataclass(frozen=True)
class InitialModel:
    """The model folder that ``training.init_from`` names."""

    folder: Path
    tasks: TaskSet
    tokenizer: Tokenizer
    before: Before
    encoder: EncoderConfig
    vectors: VectorsConfig


def read_source(config: Config, tasks: TaskSet) -> InitialModel:
    """Read the model that ``training.init_from`` names; ``tasks`` are those of the run.

    Raises UserError if there is no model, or if it has a task or token that the run does not list.
    """
    folder = find_model(Path(str(config.training.init_from)))
    checkpoint.check_model(folder)
    theirs = load_config(folder / checkpoint.CONFIG)
    known = tasks_of(theirs.tasks, folder=folder)
    lost = [f"task {name}" for name in known.names if name not in tasks]
    lost += [f"token {symbol}" for symbol in known.symbols if symbol not in tasks.symbols]
    if lost:
        raise UserError(
            f"--training.init_from={folder}: the model has the {lost[0]}: list all its tasks and languages under tasks "
            "(tasks without labelled cuts are kept at no cost)"
        )
    tokenizer = Tokenizer.load(folder / checkpoint.TOKENIZER)
    weights = set(checkpoint.read_names(folder / checkpoint.WEIGHTS))
    tables = [table for table in TABLES if f"{table}.table" in weights]
    strategy, ours = theirs.model.vectors.strategy, config.model.vectors
    if strategy != ours.strategy and set(tables) & set(PLACES[ours.placement]):
        raise UserError(f"--training.init_from={folder}: the model has --model.vectors.strategy={strategy}")
    before = Before(tokenizer.vocab_size, list(known.names), tables, "ctc.weight" in weights)
    return InitialModel(folder, known, tokenizer, before, theirs.model.encoder, theirs.model.vectors)


def continue_vectors(config: Config, source: Optional[InitialModel], start: Optional[Path]) -> str:
    """Set ``model.vectors.masked`` and ``model.spec_augment.fill`` if they are null.

    They get the values of the model that the run continues from, else true and mean. (With ``training.init_from`` the
    model's ``fill`` is a default of the configuration: `config_files.continued_defaults`.)

    Returns a line for the log if ``masked`` is set to false, else an empty text.

    Args:
        config: configuration of the run, changed in place.
        source: see `read_source`; None without ``training.init_from``.
        start: the checkpoint that the run resumes from.

    Raises:
        UserError: the run resumes with another ``code`` or ``scale`` than the checkpoint's. (`start_from` converts it.)
    """
    ours, augment = config.model.vectors, config.model.spec_augment
    resumed = load_config(start / checkpoint.CONFIG).model if start else None
    if augment.fill is None:
        augment.fill = resumed.spec_augment.fill if resumed else "mean"
    theirs = resumed.vectors if resumed else source.vectors if source else None
    shared = set(PLACES[theirs.placement]) & set(PLACES[ours.placement]) if theirs else set()
    for name in ("code", "scale") if start and shared else ():
        if getattr(ours, name) != getattr(theirs, name):
            had = f"--model.vectors.{name}={getattr(theirs, name)}"
            raise UserError(f"{start}: the run has {had}: to change it, start a new run with --training.init_from")
    # Vectors that are added to other features start at zero (`matched_encoder`): there is nothing to keep.
    same_seam = source is None or seam_of(source.encoder) == seam_of(config.model.encoder)
    if ours.masked is not None:
        return ""
    ours.masked = theirs.masked is not False if theirs and TABLES[0] in shared and same_seam else True
    where = start or (source.folder if source else "")
    said = "SpecAugment does not mask its task vectors, nor does this run: --model.vectors.masked=true does"
    return "" if ours.masked else f"{where}: {said} (docs/concepts.md)"


def before_of(config: Config, source: Optional[InitialModel], start: Optional[Path]) -> Optional[Before]:
    """Return the model before the run began (a pretrained transducer too); None for a run from scratch.

    ``source``: see `read_source`. ``start``: the checkpoint that the run resumes from, whose state stores it. Raises
    UserError if ``training.train_only`` is not ``all`` in a run from scratch.
    """
    before = source.before if source else None
    if not source and not start and config.model.transducer == "pretrained":
        before = Before(config_of(config.model.encoder.name).vocab_size, ["asr"], [], False)
    if start:
        stored = checkpoint.read_state(start).get("before")
        try:
            before = Before(**stored) if stored else None
        except TypeError:
            raise UserError(f"{start / checkpoint.STATE}: 'before': not as it was written") from None
    if before is None and config.training.train_only != "all":
        raise UserError(
            f"--training.train_only={config.training.train_only}: needs --training.init_from or "
            "--model.transducer=pretrained"
        )
    return before


def new_below_mean(training: TrainingConfig) -> float:
    """Return ``training.new_below_mean`` or its default: training all weights need not keep old scores."""
    if training.new_below_mean is None:
        return 1.0 if training.train_only == "all" else 10.0
    return training.new_below_mean


def start_from(
    source: InitialModel,
    model: Transducer,
    tasks: TaskSet,
    tokenizer: Tokenizer,
    say: Callable[[str], None] = lambda line: None,
    below_mean: float = 10.0,
    like_peers: bool = False,
) -> List[str]:
    """Load the weights of a source into a model; return the added tasks and tokens.

    Args:
        say: called with lines about new parts and parts that are left out.
        below_mean: see `extended_state`.
        like_peers: initialise new tokens like their `peers`.

    Raises:
        UserError: the vocabulary does not extend the source's, or the model has another shape.
    """
    if not tokenizer.extends(source.tokenizer):
        raise UserError(
            f"{source.folder}: trained with another vocabulary ({source.tokenizer.vocab_size} tokens, ours has "
            f"{tokenizer.vocab_size}); leave out --tokenizer.model to use its vocabulary, extended"
        )
    path = source.folder / checkpoint.WEIGHTS
    # Packaged models are in float16: rows are added, and vectors converted, in float32.
    state = {k: v.float() if v.dtype == torch.float16 else v for k, v in checkpoint.read_tensors(path).items()}
    state, new, left_out = matched_parts(state, model)
    state, new_layers, lines = matched_encoder(state, source, model)
    if new + new_layers:
        lines.append(f"it lacks {', '.join(new + new_layers)}: new in this run")
    if left_out:
        lines.append(f"its {', '.join(left_out)} is left out: this run's model has none")
    before = source.before
    for name in (f"{table}.table" for table in before.tables if f"{table}.table" in state):
        state[name] = recoded(state[name], source.vectors, model.config.vectors)
    if (before.vocabulary, before.tasks) != (tokenizer.vocab_size, list(tasks.names)):
        like = peers(source.tokenizer, tokenizer, tasks) if like_peers else {}
        state = extended_state(state, before, model, tasks.names, below_mean, like)
    problem = model.load_checkpoint_state(state)
    if problem:
        raise UserError(f"{path}: does not fit the model: {problem}")
    for line in lines:
        say(f"{source.folder}: {line}")
    new_tasks = [f"task {name}" for name in tasks.names if name not in source.tasks]
    return new_tasks + tokenizer.pieces(range(source.tokenizer.vocab_size, tokenizer.vocab_size))


def start_from_pretrained(name: str, model: Transducer, below_mean: float) -> int:
    """Load a pretrained predictor and joiner into a model with extended vocabulary; return the old vocabulary's size.

    Rows of new tokens start as in `extended_state`. The simple joiner, which finds the pruning bounds and which the
    checkpoint does not have, starts as a linear approximation of the joiner: relu(a + b) and tanh(a + b) of spread
    values are about (a + b) / 2, so its logits are half of W (a + b), plus the bias. ``model`` has the sizes of
    `pretrained_transducer.set_sizes`. Raises UserError if the checkpoint cannot be read, or does not fit.
    """
    vocabulary = read_vocabulary(name)
    theirs = config_of(name)
    ours = (model.joiner.activation, model.predictor.symbols_per_frame)
    if ours != (theirs.hidden_act, theirs.max_symbols_per_step):
        raise UserError(
            "--model.transducer=pretrained: sizes, joiner_activation and symbols_per_frame are the checkpoint's: leave "
            "out --model.predictor_layers"
        )
    state = read_weights(name, vocabulary.order)
    rows = model.joiner.output.out_features
    for key in set(VOCABULARY_ROWS) & set(state):
        state[key] = _with_mean_rows(state[key], rows, model.predictor.blank_id)
    state["joiner.output.bias"][vocabulary.tokenizer.vocab_size :] -= below_mean
    output, bias = 0.5 * state["joiner.output.weight"], state["joiner.output.bias"]
    for simple, side, constant in (("simple_am", "encoder_proj", 0), ("simple_lm", "predictor_proj", bias)):
        state[f"{simple}.weight"] = output @ state[f"joiner.{side}.weight"]
        state[f"{simple}.bias"] = output @ state[f"joiner.{side}.bias"] + constant
    problem = model.load_checkpoint_state({**gathered(model.checkpoint_state()), **state})
    if problem:
        raise UserError(f"{name}: does not fit the model: {problem}")
    return vocabulary.tokenizer.vocab_size


def matched_parts(state: State, model: Transducer) -> Tuple[State, List[str], List[str]]:
    """Return weights with the auxiliary parts (`AUXILIARY`) of a model, the new parts, and omitted parts.

    A part that the source does not have keeps its initial values: random for a CTC head, zero for task vectors. A part
    of which the source has only some tensors is not completed.
    """
    wanted, out = gathered(model.checkpoint_state()), dict(state)
    new, left_out = [], []
    for part in AUXILIARY:
        prefix = f"{part}."
        ours, theirs = ({k: v for k, v in of.items() if k.startswith(prefix)} for of in (wanted, state))
        if ours and not theirs:
            new.append(f"{part} ({_count(ours)})")
            out.update(ours)
        elif theirs and not ours:
            left_out.append(f"{part} ({_count(theirs)})")
            out = {name: value for name, value in out.items() if name not in theirs}
    return out, new, left_out


def matched_encoder(state: State, source: InitialModel, model: Transducer) -> Tuple[State, List[str], List[str]]:
    """Add the pretrained encoder's weights that the source froze; return all weights, new parts and messages.

    Adapters that the source did not have keep their initial values; those of a lower rank are widened
    (`widened_adapters`). If the features at the seam differ, the vectors that are added to them start at zero.
    """
    wanted, out, new, lines = gathered(model.checkpoint_state()), dict(state), [], []
    ours = {name: value for name, value in wanted.items() if name.startswith(PRETRAINED)}
    for name in ours:  # peft renames a matrix that gets adapters
        plain = name.replace(".base_layer.", ".")
        if name not in out and plain in out:
            out[name] = out.pop(plain)
    adapted = {name.partition(".lora_")[0] for name in out if ".lora_" in name}
    if adapted and model.config.encoder.lora_rank:
        wider = widened_adapters(out, ours, source, model.config.encoder)
        out.update(wider)
        if wider:
            before, now = source.encoder.lora_rank, model.config.encoder.lora_rank
            change = f"widened to {now}" if now > before else "rescaled (model.encoder.lora_alpha)"
            lines.append(f"its adapters of rank {before} are {change}")
    frozen = frozen_by(source.encoder, model.encoder.backbone)
    missing = {name: value for name, value in ours.items() if name not in out}
    adapters = {k: v for k, v in missing.items() if ".lora_" in k and k.partition(".lora_")[0] not in adapted}
    layers = {k: v for k, v in missing.items() if ".lora_" not in k and frozen(k[len(PRETRAINED) :])}
    if layers:
        lines.append(f"it froze layers that this run trains: they start as pretrained ({_count(layers)})")
    if adapters:
        new.append(f"adapters ({_count(adapters)})")
    vectors = TABLES[0]
    kept = vectors in source.before.tables and vectors in tables_of(model)
    if kept and seam_of(source.encoder) != seam_of(model.config.encoder):
        lines.append(f"its {vectors} are left out and start at zero: the features that they are added to are others")
        out.update((name, torch.zeros_like(value)) for name, value in wanted.items() if name.startswith(f"{vectors}."))
    return {**layers, **adapters, **out}, new, lines


def widened_adapters(state: State, ours: State, source: InitialModel, config: EncoderConfig) -> State:
    """Convert adapters of a lower rank or of another scale (alpha / rank) to the shapes and the scale of ours.

    The added rows of A are random, the added columns of B zero: the model's output does not change. ``ours``: tensors
    of the model's encoder, with its initial adapters. Raises UserError if the source's rank is higher.
    """
    theirs, rank = source.encoder, config.lora_rank
    if theirs.lora_rank > rank:
        raise UserError(
            f"{source.folder}: has --model.encoder.lora_rank={theirs.lora_rank}; expected at least that, got {rank}"
        )
    scale = (theirs.lora_alpha / theirs.lora_rank) / (config.lora_alpha / rank)
    out = {}
    for name in ours:
        if name in state and ".lora_A." in name:
            out[name] = torch.cat([state[name], ours[name][len(state[name]) :].to(state[name])])
        elif name in state and ".lora_B." in name:
            out[name] = scale * torch.nn.functional.pad(state[name], (0, rank - state[name].shape[1]))
    return out if scale != 1 or theirs.lora_rank < rank else {}


def seam_of(config: EncoderConfig) -> Tuple[object, ...]:
    """What determines the features at the seam, for a given pretrained encoder."""
    return config.kind, {"frozen": list(config.layers), "split": config.split_layer}.get(config.kind)


def frozen_by(config: EncoderConfig, backbone: Backbone) -> Callable[[str], bool]:
    """Return a function that tells whether checkpoints leave out the backbone's weight of a given name."""
    if config.kind == "finetune":
        return lambda name: False
    if config.kind == "frozen" or config.lora_rank:
        return lambda name: True
    ids = {id(module) for module in backbone.upper(config.split_layer, config.layers)}
    trained = tuple(f"{name}." for name, module in backbone.named_modules() if id(module) in ids)
    return lambda name: not name.startswith(trained)


def _count(tensors: State) -> str:
    """Return the number of parameters as text, without the flags ``trained``."""
    return f"{sum(value.numel() for name, value in tensors.items() if not name.endswith('.trained')):,} parameters"


def tables_of(model: Transducer) -> List[str]:
    """The tables of task vectors of a model."""
    return [table for table in TABLES if getattr(model, table) is not None]


def extended_state(
    state: Dict[str, Tensor],
    before: Before,
    model: Transducer,
    tasks: Sequence[str],
    below_mean: float,
    like: Dict[int, List[int]],
) -> Dict[str, Tensor]:
    """The weights of a smaller model, with added rows for the tokens and tasks of ``model``.

    - Rows of new tokens are the mean of the old ones except the blank's: a new token's logit is the mean of the old
      logits. With ``like`` (see `peers`) they are the mean of the rows given there, if any. In the joiner they are
      lowered by ``below_mean`` nats: with 10, a new token's probability is at most exp(-10) / (V - 1), about 1e-7, so
      that old hypotheses keep their scores; with 1, the output of greedy search does not change.
    - Rows of new task vectors are zero (``sum``), or those of the same combination without the new tasks
      (``combination``): switching a new task on changes nothing at first.
    - Tables that the smaller model did not have are zero; a CTC head that it did not have is the model's.

    Tensors of another width are not changed: they do not fit.
    """
    wanted = gathered(model.checkpoint_state())
    out = dict(state)
    fits = {name for name in state if name in wanted and state[name].shape[1:] == wanted[name].shape[1:]}
    for name in VOCABULARY_ROWS:
        if name in fits and len(wanted[name]) > len(state[name]):
            out[name] = _with_mean_rows(state[name], len(wanted[name]), model.predictor.blank_id)
            for token, old in like.items():
                out[name][token] = state[name][old].double().mean(0).to(out[name].dtype)
    if "joiner.output.bias" in out:
        out["joiner.output.bias"][before.vocabulary :] -= below_mean
    for table in tables_of(model):
        vectors = getattr(model, table)
        old_rows, is_new = old_row_of_each(vectors.strategy, before.tasks, tasks)
        for key, keep_new in ((f"{table}.table", vectors.strategy == "combination"), (f"{table}.trained", False)):
            rows = torch.zeros_like(wanted[key])
            if table in before.tables:
                if key not in fits:
                    continue
                kept = old_rows >= 0 if keep_new else (old_rows >= 0) & ~is_new
                rows[kept] = state[key][old_rows[kept]].to(rows.dtype)  # packaged weights are fp16
            out[key] = rows
    return out


def peers(old: Tokenizer, new: Tokenizer, tasks: TaskSet) -> Dict[int, List[int]]:
    """Return similar old tokens for new ones, by id: all languages for a language, ``a`` for ``ă``.

    A mean of rows gives the mean of their logits, which is never above the highest of them: the output of greedy search
    does not change before the first step.
    """
    codes = tasks["lid"].symbols if "lid" in tasks else ()
    known = {piece: i for i, piece in enumerate(old.pieces())}
    found = {}
    for token in range(old.vocab_size, new.vocab_size):
        piece = new.pieces([token])[0]
        letter = unicodedata.normalize("NFD", piece)[0]
        like = [known[code] for code in codes if code in known] if piece in codes else []
        if len(piece) == 1 and letter in known:
            like = [known[letter]]
        if like:
            found[token] = like
    return found


def _with_mean_rows(old: Tensor, rows: int, blank: int) -> Tensor:
    """(V, ..) -> (rows, ..): added rows are the mean of the old ones without the blank's, computed in float64."""
    others = torch.arange(len(old)) != blank
    mean = old[others].double().mean(0, keepdim=True).to(old.dtype)
    return torch.cat([old, mean.expand(rows - len(old), *old.shape[1:])])


def old_row_of_each(strategy: str, old: Sequence[str], new: Sequence[str]) -> Tuple[Tensor, Tensor]:
    """Return for each row of a table of vectors its row in the smaller model's table (-1: none), and if it is new.

    Args:
        strategy: ``sum``: a row per task; ``combination``: a row per set of tasks (`TaskVectors`).
        old: the smaller model's tasks in order, ``asr`` first.
        new: the model's tasks in order.

    >>> old_row_of_each("sum", ["asr", "scd", "lid"], ["asr", "scd", "ner", "lid"])
    (tensor([ 0,  1, -1,  2]), tensor([False, False,  True, False]))
    >>> old_row_of_each("combination", ["asr", "lid"], ["asr", "ner", "lid"])  # {}, {ner}, {lid}, {ner, lid}
    (tensor([0, 0, 1, 1]), tensor([False,  True, False,  True]))
    """
    if strategy == "sum":
        rows = torch.tensor([old.index(name) if name in old else -1 for name in new])
        return rows, rows < 0
    others = list(new)[1:]
    found, is_new = [], []
    for row in range(2 ** len(others)):
        active = [name for bit, name in enumerate(others) if row >> bit & 1]
        found.append(sum(2 ** list(old)[1:].index(name) for name in active if name in old))
        is_new.append(any(name not in old for name in active))
    return torch.tensor(found), torch.tensor(is_new)
