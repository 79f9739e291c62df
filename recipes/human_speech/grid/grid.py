"""A grid of experiments as YAML: what runs there are, and what defines each.

Training manifests made from one manifest: parts of it, labels for a share of the cuts, other labels for each half of
the cuts, labels claimed but empty.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

import yaml

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.editing.label import LabelChange, in_order, label_rows
from tokenverse_pp.data.editing.split import Wanted, write_subset
from tokenverse_pp.data.manifests import (
    ManifestRow,
    custom_of,
    duration_of,
    read_rows,
    supervision_custom,
    supervisions_of,
    writing_rows,
)

Settings = Dict[str, Any]  # dotted option of recipes/train.py -> value
RUN_KEYS = {"about", "configs", "settings", "train", "seeds", "decode", "decodings", "sweep", "of", "init_from",
            "hyps", "switching"}  # fmt: skip
COMMON_KEYS = {"configs", "settings", "train", "seeds", "decode", "init_from", "tokenizer"}


@dataclass(frozen=True)
class Decoding:
    """One decoding of the test set: options of recipes/decode.py, without the dashes."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One training and its decodings, or (with ``of``) decodings alone, of another run's model.

    Args:
        settings: of recipes/train.py, those of the configuration files included; later ones have won.
        train: name of the derived training manifest.
        of: the run whose model is decoded; nothing is trained.
        init_from: the run from whose model the training starts: of the same seed, or the only one of a run of one seed.
        hyps: hypotheses that another program wrote, to compare with; nothing is run.
        switching: options of switching.py, where that measures the model too.
    """

    name: str
    about: str
    settings: Settings
    train: str
    seeds: Tuple[int, ...]
    decodings: Tuple[Decoding, ...]
    of: Optional[str] = None
    init_from: Optional[str] = None
    hyps: Optional[str] = None
    switching: Optional[Decoding] = None

    @property
    def needs(self) -> Optional[str]:
        """The run that has to be trained before this one."""
        return self.of or self.init_from


@dataclass(frozen=True)
class Grid:
    """All runs, in order.

    Args:
        corpora: file names of the sets ``train``, ``dev`` and ``test`` in the data folder.
        manifests: name -> how a training manifest is made from the ``train`` set.
        tokenizer: ``tasks``, ``languages`` and ``vocab_size`` of the one tokenizer that all runs share.
        parts: name -> patterns of runs that are done together, the most important part first.
    """

    corpora: Mapping[str, str]
    manifests: Mapping[str, Derivation]
    tokenizer: Mapping[str, Any]
    runs: Mapping[str, Run]
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def plan(self, names: Sequence[str]) -> List[List[Run]]:
        """The runs to do, part by part: a name is one of a part or of runs (`chosen`).

        None named: all parts, then the rest.

        Raises:
            UserError: for a name that is neither.
        """
        patterns = [self.parts.get(name, [name]) for name in names] or [*self.parts.values(), list(self.runs)]
        done: Dict[str, Run] = {}
        parts = []
        for part in patterns:
            parts.append([run for run in self.chosen(part) if run.name not in done])
            done.update((run.name, run) for run in parts[-1])
        return parts

    def chosen(self, patterns: Sequence[str]) -> List[Run]:
        """The runs named, ``transfer_*`` for all that begin so; none named: all. What a run needs comes before it.

        Raises:
            UserError: for a name that no run has.
        """
        names: List[str] = []
        for pattern in patterns or self.runs:
            found = [name for name in self.runs if name == pattern or Path(name).match(pattern)]
            if not found:
                raise UserError(f"no run {pattern!r} in the grid, which has {', '.join(self.runs)}")
            for name in found:
                names.extend(self._with_needs(name))
        return [self.runs[name] for name in dict.fromkeys(names) if not self.runs[name].hyps]

    def seed_of(self, name: str, seed: int) -> int:
        """Which seed of a run serves another run's ``seed``: the same, or the only one that there is."""
        seeds = self.runs[name].seeds
        return seeds[0] if len(seeds) == 1 else seed

    def _with_needs(self, name: str) -> List[str]:
        needs = self.runs[name].needs
        return [*(self._with_needs(needs) if needs else ()), name]


def load_grid(path: Path, root: Path, changes: Optional[Mapping[str, Any]] = None) -> Grid:
    """Read a grid.

    Args:
        path: the YAML file.
        root: the folder that the configuration files are named from.
        changes: settings for every run, above what the file says (a short try: ``training.max_steps``).

    Raises:
        UserError: naming the file and what it says that cannot be.
    """
    data = read_yaml(path)
    try:
        common = _only(data.get("common") or {}, COMMON_KEYS, "common")
        manifests = {name: Derivation.of(value or {}) for name, value in (data.get("manifests") or {}).items()}
        runs = {
            name: _run(name, _only(value or {}, RUN_KEYS, f"run {name}"), common, root, changes or {})
            for name, value in data["runs"].items()
        }
        for run in runs.values():
            _check(run, runs, manifests)
        grid = Grid(data["corpora"], manifests, common.get("tokenizer") or {}, runs, data.get("parts") or {})
        grid.plan(())  # its parts name runs
        return grid
    except KeyError as error:
        raise UserError(f"{path}: expected a key {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _run(name: str, spec: Mapping[str, Any], common: Mapping[str, Any], root: Path, changes: Mapping[str, Any]) -> Run:
    settings: Settings = {}
    for config in [*common.get("configs", ()), *spec.get("configs", ())]:
        settings.update(flatten(read_yaml(root / config)))
    settings.update(common.get("settings") or {})
    settings.update(spec.get("settings") or {})
    settings.update(changes)
    return Run(
        name,
        spec.get("about", ""),
        settings,
        spec.get("train", common.get("train", "")),
        () if spec.get("hyps") else tuple(spec.get("seeds", common.get("seeds", [42]))),
        tuple(_decodings({**(common.get("decode") or {}), **(spec.get("decode") or {})}, spec)),
        spec.get("of"),
        None if spec.get("of") or spec.get("hyps") else spec.get("init_from", common.get("init_from")),
        spec.get("hyps"),
        _switching(common.get("decode") or {}) if spec.get("switching") else None,
    )


def _decodings(options: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterable[Decoding]:
    """Those that ``decodings`` names; or one for every combination of the values in ``sweep``; or one, ``test``."""
    if spec.get("decodings"):
        for name, changed in spec["decodings"].items():
            yield Decoding(name, {**options, **changed})
    elif spec.get("sweep"):
        for values in itertools.product(*spec["sweep"].values()):
            swept = dict(zip(spec["sweep"], values))
            yield Decoding(" ".join(f"{option}={value}" for option, value in swept.items()), {**options, **swept})
    else:
        yield Decoding("test", options)


def _switching(options: Mapping[str, Any]) -> Decoding:
    """How switching.py decodes: greedily, of the options for decode.py only what the inputs need."""
    return Decoding("switching", {name: options[name] for name in ("stored-features", "encoder") if name in options})


def _check(run: Run, runs: Mapping[str, Run], manifests: Mapping[str, Derivation]) -> None:
    if run.train not in manifests:
        raise UserError(f"run {run.name}: no manifest {run.train!r}; there are {', '.join(manifests)}")
    if run.needs and run.needs not in runs:
        raise UserError(f"run {run.name}: needs a run {run.needs!r}, which is not there")
    theirs = runs[run.needs].seeds if run.needs else ()
    if run.needs and len(theirs) != 1 and not set(run.seeds) <= set(theirs):
        raise UserError(f"run {run.name}: needs run {run.needs} of every seed {list(run.seeds)}")


def _only(data: Any, keys: Iterable[str], where: str) -> Dict[str, Any]:
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected a mapping, found {data!r}")
    unknown = sorted(set(data) - set(keys))
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; expected some of {', '.join(sorted(keys))}")
    return data


def read_yaml(path: Path) -> Dict[str, Any]:
    """A mapping from a YAML file (raises UserError where there is none)."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping")
    return data


def flatten(data: Mapping[str, Any], prefix: str = "") -> Settings:
    """Nested mappings as dotted options.

    >>> flatten({"model": {"vectors": {"placement": "both"}, "joiner_dim": 256}})
    {'model.vectors.placement': 'both', 'model.joiner_dim': 256}
    """
    flat: Settings = {}
    for key, value in data.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def nested(settings: Settings) -> Dict[str, Any]:
    """The inverse of `flatten`: what a configuration file holds."""
    data: Dict[str, Any] = {}
    for option, value in settings.items():
        *sections, key = option.split(".")
        inner = data
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return data


def digest(data: Any) -> str:
    """SHA-256 of anything that JSON takes; the order of keys does not count."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Derivation:
    """How a training manifest is made, in this order.

    Args:
        corpora: only cuts of these corpora; none: of all.
        tasks: only cuts that are labelled for all of these.
        keep_labels: task -> share of its labelled cuts that keep the label, drawn anew for each seed of a run.
        only: drop the labels of all tasks but these.
        divide: for each part of the cuts the tasks whose labels it keeps (in place of ``only``); which cut is in which
            part is drawn anew for each seed of a run (`divided`).
        claim: say of every cut that it is labelled for these: where a label is missing, that there is nothing
            (`claim_tasks`).
    """

    corpora: Tuple[str, ...] = ()
    tasks: Tuple[str, ...] = ()
    keep_labels: Mapping[str, float] = field(default_factory=dict)
    only: Tuple[str, ...] = ()
    divide: Tuple[Sequence[str], ...] = ()
    claim: Tuple[str, ...] = ()

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Derivation:
        """From YAML (raises UserError for a key that is none)."""
        names = {f.name for f in dataclasses.fields(cls)}
        for key in data:
            if key not in names:
                raise UserError(f"manifests: unknown key {key!r}; expected some of {', '.join(sorted(names))}")
        given: Dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        if given.get("only") and given.get("divide"):
            raise UserError("manifests: only and divide both say which labels stay; expected one of them")
        return cls(**given)

    @property
    def is_drawn(self) -> bool:
        """Whether it depends on a seed."""
        return bool(self.keep_labels or self.divide)

    def as_dict(self, seed: int) -> Dict[str, Any]:
        """What defines the manifest that comes of it, beside the one it is made from; empty: that one itself."""
        given = {key: value for key, value in dataclasses.asdict(self).items() if value}
        return {**given, "seed": seed} if self.is_drawn else given


def derive(source: Path, output: Path, how: Derivation, seed: int) -> None:
    """Write the manifest that ``how`` makes of ``source``; it appears whole or not at all.

    Raises:
        UserError: where no cut is left, or a claimed task cannot be empty.
    """
    wanted = Wanted(tasks=frozenset(how.tasks), corpora=frozenset(how.corpora), keep_labels=how.keep_labels, seed=seed)
    part = output.with_name(f".part{os.getpid()}.{output.name}")
    try:
        write_subset(source, part, wanted)
        with writing_rows(output) as writer:
            for data in _changed(part, how, seed):
                writer.write(data)
    finally:
        part.unlink(missing_ok=True)


def _changed(path: Path, how: Derivation, seed: int) -> Iterator[Dict[str, Any]]:
    kept = [LabelChange(only=tuple(tasks)) for tasks in how.divide]
    part_of = divided(read_rows(path), len(kept), seed) if kept else {}
    for row in read_rows(path):
        change = kept[part_of[row.id]] if kept else LabelChange(only=how.only or None)
        for data in label_rows([row], change):
            if how.claim:
                claim_tasks(data, how.claim)
            yield data


def divided(rows: Iterable[ManifestRow], parts: int, seed: int) -> Dict[str, int]:
    """Cut id -> number of its part, drawn at random; the parts are alike in languages and lengths.

    Of the cuts of a language in order of length each ``parts`` neighbours go to different parts.
    """
    by_language: Dict[Tuple[str, ...], List[Tuple[float, str]]] = {}
    for row in rows:
        languages = sorted({str(turn.get("language")) for turn in supervisions_of(row.data)})
        by_language.setdefault(tuple(languages), []).append((duration_of(row), row.id))
    found: Dict[str, int] = {}
    for languages, cuts in by_language.items():
        draw, cuts = random.Random(f"{seed}/{languages}"), sorted(cuts)
        for first in range(0, len(cuts), parts):
            numbers = draw.sample(range(parts), parts)
            found.update((cut_id, number) for (_, cut_id), number in zip(cuts[first : first + parts], numbers))
    return found


def claim_tasks(data: Dict[str, Any], tasks: Tuple[str, ...]) -> None:
    """Say of a cut that it is labelled for ``tasks``, with nothing in it of those that it lacked.

    That is what mixing corpora comes to without task vectors: a cut that nobody marked entities in then teaches that
    it has none. No speaker changes: all turns get one speaker; no endpoint: ``endpoint`` is false everywhere.

    Raises:
        UserError: for a task whose label cannot be empty (a language is always spoken).
    """
    custom = custom_of(data)
    labelled = custom.get("tasks", ["asr"])
    missing = [task for task in tasks if task not in labelled]
    for task in missing:
        if task not in EMPTY:
            raise UserError(f"cut {data['id']}: not labelled for {task}, and nothing can stand for that label")
        for supervision in supervisions_of(data):
            EMPTY[task](supervision, supervision_custom(supervision, data["id"]))
    custom["tasks"] = in_order([*labelled, *missing])


def _no_change(supervision: Dict[str, Any], custom: Dict[str, Any]) -> None:
    supervision["speaker"] = "unknown"


def _no_endpoint(supervision: Dict[str, Any], custom: Dict[str, Any]) -> None:
    custom["endpoint"] = False


def _no_entity(supervision: Dict[str, Any], custom: Dict[str, Any]) -> None:
    custom["entities"] = []


EMPTY: Mapping[str, Callable[[Dict[str, Any], Dict[str, Any]], None]] = {
    "scd": _no_change,
    "endp": _no_endpoint,
    "ner": _no_entity,
}
