"""Names of the last release's modules that documents used, for one more release: importing one warns and works.

CHANGELOG.md has the whole list of what moved where. What is not listed here fails with Python's own error.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Dict, Optional, Sequence, Tuple

PACKAGE = "tokenverse_pp"
# Old module -> the modules that have its names now, in the order in which they are looked up.
MODULES: Dict[str, Tuple[str, ...]] = {
    "api.inputs": ("data.audio.inputs",),
    "api.transcript": ("tasks.result",),
    "cli.errors": ("cli.groups",),
    "config": ("base.config", "base.config_files", "base.config_checks"),
    "dataset": ("data.dataset",),
    "decoding.vector_scale": ("decoding.recognizer",),
    "errors": ("base.errors",),
    "export": ("onnx.export",),
    "files": ("base.files",),
    "hypotheses": ("data.hypotheses",),
    "languages": ("base.languages",),
    "long_audio": ("decoding.long_form",),
    "loss": ("losses", "losses.entry"),
    "loss.native": ("losses.native",),
    "manifests": (),
    "manifests.access": ("data.access",),
    "manifests.files": ("data.manifests",),
    "manifests.labels": ("data.labels",),
    "manifests.normalise": ("data.normalise",),
    "manifests.reading": ("data.manifests",),
    "manifests.stored_features": ("models.stored_features",),
    "metrics.entities": ("metrics.f1",),
    "metrics.events": ("metrics.f1",),
    "metrics.languages": ("metrics.error_rates",),
    "metrics.wer": ("metrics.error_rates",),
    "model": (),
    "model.encoder": ("models.encoders", "models.encoders.base"),
    "model.encoder.config": ("base.config",),
    "model.encoder.whisper_base": ("models.encoders.whisper_base",),
    "model.joiner": ("models.joiner",),
    "model.masks": ("models.masks", "base.config"),
    "model.predictor": ("models.predictor",),
    "model.transducer": ("models.transducer",),
    "report_page": ("evaluation.report",),
    "scoring": ("evaluation.scoring",),
    "search": (
        *(
            "decoding.search",
            "base.search_options",
            "decoding.hypothesis",
            "tasks.transcript",
            "decoding.context_graph",
        ),
        *("decoding.constraints", "decoding.automaton", "decoding.scorer"),
    ),
    "search.arpa": ("decoding.ngram",),
    "search.hotwords": ("decoding.context_graph",),
    "search.hypothesis": ("decoding.hypothesis", "tasks.transcript"),
    "search.options": ("base.search_options",),
    "search.records": ("decoding.hypothesis",),
    "streaming": ("decoding.streaming.transcriber", "decoding.streaming.encoder", "base.config"),
    "streaming.transcriber": ("decoding.streaming.transcriber",),
    "tasks.turns": ("tasks.transcript",),
    "tokenizer": ("data.tokenizer",),
    "training.data": ("data.samplers",),
    "training.distributed": ("data.distributed", "models.devices"),
    "training.loop": ("training.trainer",),
    "training.setup": ("models.bundle",),
    "training.validate": ("training.validation",),
}


class MovedModules(MetaPathFinder, Loader):
    """Finds the old modules (PEP 451)."""

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Optional[ModuleSpec]:
        """The spec of an old module, and None for every other."""
        name = fullname[len(PACKAGE) + 1 :]
        if not fullname.startswith(f"{PACKAGE}.") or name not in MODULES:
            return None
        return ModuleSpec(fullname, self, is_package=any(other.startswith(f"{name}.") for other in MODULES))

    def exec_module(self, module: ModuleType) -> None:
        """Fill an old module: it asks the new ones for each name."""
        new = [f"{PACKAGE}.{name}" for name in MODULES[module.__name__[len(PACKAGE) + 1 :]]]

        def find(name: str) -> Any:
            for other in new:
                value = getattr(import_module(other), name, None)
                if value is not None:
                    return value
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}; CHANGELOG.md says what moved")

        module.__getattr__ = find  # type: ignore[method-assign]
        if new:
            where = " or ".join(new)
            message = f"{module.__name__} moved: import from {where}; the old name works in this release only"
            warnings.warn(message, DeprecationWarning, stacklevel=2)


def install() -> None:
    """Make the old names importable; once a process."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
