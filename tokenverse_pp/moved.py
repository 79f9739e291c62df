"""The module names of the last release, for one more: importing one warns and works (CHANGELOG.md has the table)."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Dict, Optional, Sequence, Tuple

PACKAGE = "tokenverse_pp"
# Module of today -> the old modules whose names it has. Names of an old module that was split are looked up in the
# order of this table.
NEW: Dict[str, str] = {
    "": "manifests manifests.corpora manifests.importing model",
    "api.folders": "api.locate api.saving",
    "api.formats.subtitles": "api.formats.cues api.formats.srt api.formats.vtt",
    "api.formats.text": "api.formats.html api.formats.nist api.formats.plain",
    "api.transcribing": "api.decoding api.options",
    "base.errors": "errors",
    "base.files": "files tables",
    "base.languages": "languages",
    "cli.evaluate": "cli.calibrate cli.compare cli.report cli.score",
    "cli.groups": "cli.errors",
    "cli.main": "cli.manifest",
    "cli.model": "cli.average cli.export",
    "cli.serve": "cli.stream",
    "cli.tune": "cli.endpoints",
    "data.access": "manifests.access manifests.audio",
    "data.audio.inputs": "api.inputs",
    "data.corpora.clips": "manifests.corpora.utterances",
    "data.corpora.common": "manifests.corpora.audio manifests.corpora.parts",
    "data.corpora.conversations": "manifests.corpora.ami manifests.corpora.dialogues",
    "data.corpora.read_speech": "data.corpora.fleurs manifests.corpora.commonvoice manifests.corpora.languages "
    "manifests.corpora.librispeech manifests.corpora.mls",
    "data.corpora.telephone": "manifests.corpora.telephone",
    "data.corpora.voxpopuli": "manifests.corpora.voxpopuli",
    "data.dataset": "dataset",
    "data.distributed": "training.distributed",
    "data.editing.conversations": "manifests.conversations manifests.corpora.dialogues "
    "manifests.corpora.turn_manifests",
    "data.editing.entity_finders": "manifests.gazetteer manifests.spacy_entities",
    "data.editing.label": "manifests.label",
    "data.editing.mix": "manifests.mix",
    "data.editing.shar": "manifests.shar",
    "data.editing.split": "manifests.split manifests.subset",
    "data.editing.stats": "manifests.showing manifests.stats manifests.stats_plot manifests.validate",
    "data.hypotheses": "hypotheses",
    "data.importing.annotations": "manifests.importing.annotations",
    "data.importing.audio": "manifests.importing.audio manifests.importing.audio_out",
    "data.importing.brat_conll": "manifests.importing.brat manifests.importing.conll",
    "data.importing.documents": "manifests.importing.documents",
    "data.importing.fields": "manifests.importing.fields manifests.importing.inline manifests.importing.texts",
    "data.importing.kaldi": "manifests.importing.kaldi",
    "data.importing.nist": "manifests.importing.ctm manifests.importing.rttm manifests.importing.stm",
    "data.importing.rows": "manifests.importing.ledger manifests.importing.rows manifests.importing.textfiles "
    "manifests.importing.words",
    "data.importing.run": "manifests.importing.cuts manifests.importing.grouping manifests.importing.run",
    "data.importing.sources": "manifests.importing.options manifests.importing.sources",
    "data.importing.subtitles": "manifests.importing.subtitles",
    "data.importing.tables": "manifests.importing.huggingface manifests.importing.tables",
    "data.labels": "manifests.label_source manifests.labels manifests.plain",
    "data.lines": "manifests.ids manifests.lines",
    "data.manifests": "manifests.files manifests.progress manifests.reading manifests.rows",
    "data.normalise": "manifests.normalise",
    "data.tokenizer": "tokenizer",
    "decoding.beam": "search.beam search.keys",
    "decoding.full_beam": "search.full",
    "decoding.greedy": "search.greedy",
    "decoding.k2_fast_beam": "search.k2_fast",
    "decoding.long_form": "long_audio long_audio.decode long_audio.merge long_audio.units",
    "decoding.ngram": "search.arpa search.ngram search.word_list",
    "decoding.recognizer": "decoding.batches decoding.options decoding.search decoding.vector_scale search "
    "search.entry search.frames",
    "decoding.run": "decoding.parts",
    "base.options": "base.option_help base.search_options search search.options",
    "decoding.hypothesis": "search search.confidence search.hypothesis",
    "decoding.streaming.fronts": "streaming.fronts",
    "decoding.streaming.search": "decoding.streaming.methods streaming.search streaming.search_beam "
    "streaming.search_greedy streaming.search_parts",
    "decoding.streaming.events": "streaming.events streaming.search_parts streaming.transcriber_words",
    "decoding.streaming.stages": "decoding.streaming.context decoding.streaming.layers decoding.streaming.state "
    "streaming.context streaming.layers streaming.stages",
    "decoding.streaming.attention": "decoding.streaming.state streaming.stages streaming.window",
    "decoding.streaming.transcriber": "streaming streaming.transcriber streaming.transcriber_stream",
    "decoding.streaming.encoder": "streaming streaming.encoder",
    "evaluation.calibration": "calibration search.confidence",
    "evaluation.comparison": "comparison",
    "evaluation.report": "report_page",
    "evaluation.report.page": "report_page.inputs report_page.page",
    "evaluation.report.tables": "evaluation.report.html report_page.html report_page.tables",
    "evaluation.report.utterance": "report_page.alignment report_page.audio report_page.timeline report_page.utterance",
    "evaluation.scoring": "report scoring",
    "losses": "loss",
    "losses.devices": "compat losses.native.kernels models.compat training.distributed",
    "losses.entry": "loss loss.entry loss.tokens",
    "losses.k2": "loss.k2_backend",
    "losses.native": "loss.native",
    "losses.native.joiner": "loss.native.joiner",
    "losses.native.lattice": "loss.native.common loss.native.lattice",
    "losses.native.pruned": "loss.native.prune loss.native.pruned",
    "losses.native.simple": "loss.native.arcs loss.native.simple",
    "metrics.error_rates": "metrics.languages metrics.wer",
    "metrics.f1": "metrics.align metrics.entities metrics.events",
    "models.bundle": "training.setup",
    "models.checkpoint": "training.checkpoint",
    "data.samplers": "compat training.data training.rounds training.sources",
    "models.encoders": "model.encoder",
    "models.encoders.base": "compat model.encoder model.encoder.base model.encoder.masking models.compat training.data",
    "models.encoders.chunks": "model.encoder.chunked model.masks",
    "models.encoders.context": "model.encoder.context",
    "models.encoders.kinds": "compat model.encoder.factory model.encoder.finetune model.encoder.frozen "
    "model.encoder.loading model.encoder.lora model.encoder.split models.compat",
    "models.encoders.wav2vec2": "model.encoder.chunked model.encoder.wav2vec2",
    "models.encoders.whisper": "model.encoder.log_mel model.encoder.whisper",
    "models.encoders.whisper_base": "model.encoder.whisper_base",
    "models.predictor": "model.predictor",
    "models.stored_features": "manifests.stored_features",
    "models.transducer": "model.joiner model.spec_augment model.task_vectors model.transducer",
    "base.config": "config config.sections model.encoder.config model.masks model.spec_augment streaming",
    "base.config_files": "config config.checks config.reading",
    "onnx.export": "export export.check export.options export.readme export.run",
    "onnx.folder": "runtime.folder",
    "onnx.graphs": "export.graphs export.streaming export.tracing export.weights onnx.streaming_graphs",
    "onnx.inputs": "runtime.audio runtime.log_mel",
    "onnx.runtime": "onnx.streaming_runtime runtime.exported runtime.runtime runtime.sessions runtime.streaming",
    "onnx.search": "runtime.search",
    "serving.access": "serving.web",
    "serving.client": "serving.extra",
    "serving.http": "serving.web",
    "serving.protocol": "serving.limits",
    "serving.server": "serving.run",
    "serving.session": "serving.outbox",
    "serving.worker": "serving.engine serving.feed",
    "tasks.base": "tasks.positions",
    "tasks.registry": "tasks.plugins tasks.text",
    "tasks.result": "api.reading api.transcript search.records",
    "tasks.transcript": "search search.hypothesis tasks.text tasks.turns",
    "decoding.context_graph": "search search.hotwords",
    "decoding.constraints": "decoding.automaton search search.automaton search.filters search.rule_tables",
    "decoding.scorer": "decoding.automaton decoding.constraint_table decoding.search decoding.tables search "
    "search.automaton search.bonuses search.row_cache search.scorer streaming.search_rules",
    "decoding.language_models": "search search.bonuses search.language_model",
    "training.checkpoints": "training.averaging training.provenance training.resume training.saving",
    "training.failures": "training.peers",
    "training.log": "training.meter",
    "training.optim": "training.freezing training.trained_rows",
    "training.steps": "training.bad_batches training.scan",
    "training.trainer": "training.loop",
    "training.validation": "training.chunks training.validate",
}
MODULES: Dict[str, Tuple[str, ...]] = {}  # old module -> modules of today; none for a package
for _module, _names in NEW.items():
    for _old in _names.split():
        MODULES[_old] = (*MODULES.get(_old, ()), *([_module] if _module else []))

RENAMED = {
    "Bar": "Suppress",
    "Bonus": "ContextGraph",
    "Decoded": "RecognizedBatch",
    "Decoder": "Recognizer",
    "Earnings": "FusionScorer",
    "Filter": "Constraint",
    "Loaded": "ModelBundle",
    "Place": "SamplerState",
    "RuleBook": "ConstraintTable",
    "RuleTables": "Constraints",
    "Rules": "BatchConstraints",
    "Together": "FusedScorers",
    "World": "DistributedContext",
    "TaskMark": "Mark",
    "TimedWord": "Word",
    "Word": "ImportedWord",  # of the words of a recording in importing
    "compile_filters": "compile_constraints",
    "compile_tables": "compile_constraints",
    "start_world": "start_distributed",
    "stop_world": "stop_distributed",
    "tables_for": "constraints_for",
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
                there = import_module(other)
                value = getattr(there, name, None) or getattr(there, RENAMED.get(name, name), None)
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
