"""The configuration: typed dataclasses, read from YAML with ``--section.key value`` overrides (jsonargparse)."""

from tokenverse_pp.config.checks import check_config, get_option
from tokenverse_pp.config.reading import from_dict, load_config, parse_config, save_config
from tokenverse_pp.config.sections import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    StreamingConfig,
    TasksConfig,
    TokenizerConfig,
    TrainingConfig,
    VectorsConfig,
)

__all__ = [
    "Config",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "StreamingConfig",
    "TasksConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "VectorsConfig",
    "check_config",
    "from_dict",
    "get_option",
    "load_config",
    "parse_config",
    "save_config",
]
