#!/usr/bin/env python3
"""Train XLSR-Transducer, TokenVerse or TokenVerse++.

    python recipes/train.py --config recipes/toy/conf/toy.yaml --training.exp_dir exp/toy
    torchrun --nproc-per-node 2 recipes/train.py --config ...     # DDP, the same code path

Run the same command again to resume a stopped run from its latest checkpoint.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Optional, Sequence

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.config_files import parse_config
from tokenverse_pp.cli.groups import quieten, report_errors
from tokenverse_pp.data.access import allow_sources
from tokenverse_pp.data.distributed import DistributedContext, start_distributed, stop_distributed
from tokenverse_pp.data.samplers import load_cuts, open_rounds
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.models.bundle import build_model, get_tokenizer, spelled_as_before
from tokenverse_pp.tasks import build_tasks, load_plugins
from tokenverse_pp.training.checkpoints import find_start
from tokenverse_pp.training.inputs import check_data, make_inputs
from tokenverse_pp.training.peers import join_watch, looking_after
from tokenverse_pp.training.trainer import Trainer, set_threads
from tokenverse_pp.training.transfer import before_of, continue_vectors, read_source
from tokenverse_pp.training.validation import Validator

log = logging.getLogger("tokenverse_pp.recipes.train")


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Read the configuration, join the other ranks, train."""
    config = parse_config(argv, description=__doc__.splitlines()[0])
    set_threads(config.training.threads)
    world = start_distributed()
    if not world.is_first:
        quieten()
    watch = join_watch(world.rank, world.size, config.training.peer_timeout) if world.size > 1 else None
    with looking_after(watch), allow_sources(config.data.allow_commands, config.data.allow_urls):
        train(config, world)
    stop_distributed()


def train(config: Config, world: DistributedContext) -> Path:
    """Train as the configuration says; return the folder of the final model.

    All input is checked before the trainer writes anything.
    """

    # Tasks and data.
    config.tasks.plugins = load_plugins(config.tasks.plugins)
    config.tasks.languages = spelled_as_before(config)
    tasks = build_tasks(config.tasks.names, config.tasks.options())
    rounds = open_rounds(config.data, config.training.seed)
    valid = load_cuts(config.data.valid, "data.valid") if config.data.valid else []

    # What to start from: a checkpoint of this run, another model, or nothing.
    start = world.from_first(lambda: find_start(config))
    if config.data.validate:
        check_data(config, tasks, world, resumed=start is not None)
    source = read_source(config, tasks) if config.training.init_from and not start else None
    before = before_of(config, source, start)
    as_before = continue_vectors(config, source, start)
    if as_before:
        log.info(as_before)

    # Tokenizer and model.
    base = source.tokenizer if source else None
    tokenizer = Tokenizer(world.from_first(lambda: get_tokenizer(config, tasks, start, base).model))
    model = build_model(config, tasks, tokenizer)
    if config.training.strategy == "ddp" or world.size == 1:  # FSDP moves only shards to the device
        model = model.to(world.device)

    # Batches: which cuts are used, and in which order.
    inputs = make_inputs(config, world, tasks, tokenizer, model.encoder, rounds, valid)

    # Train.
    dataset = inputs.dataset
    validator = Validator(inputs.held_out, dataset, config, world) if inputs.held_out else None
    trainer = Trainer(config, model, dataset, inputs.sampler, validator, world, before)
    trainer.start(start, source)
    inputs.unknown_in_valid.finish("data.valid", log.info)
    size = f"{trainer.trained / 1e6:.2f} M" if trainer.trained >= 1e4 else str(trainer.trained)
    log.info(f"tasks {', '.join(tasks.names)}; vocabulary {tokenizer.vocab_size}; {size} trained parameters")
    folder = trainer.run()
    log.info(f"model: {folder}")
    return folder


if __name__ == "__main__":
    with report_errors():
        main()
