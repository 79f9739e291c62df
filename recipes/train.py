#!/usr/bin/env python3
"""Train XLSR-Transducer, TokenVerse or TokenVerse++.

    python recipes/train.py --config recipes/toy/conf/toy.yaml --training.exp_dir exp/toy
    torchrun --nproc-per-node 2 recipes/train.py --config ...     # DDP, the same code path

Run the same command again to resume a stopped run from its latest checkpoint.
SIGTERM and SIGUSR1 stop a run after the current step, with a checkpoint; the exit code is then 143.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Optional, Sequence

from tokenverse_pp.api.folders import ENCODER_FOLDER, keep_encoder, locate_encoder, locate_model
from tokenverse_pp.base.config import Config
from tokenverse_pp.base.config_files import parse_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import url_of
from tokenverse_pp.cli.groups import quieten, report_errors
from tokenverse_pp.data.access import allow_sources
from tokenverse_pp.data.distributed import DistributedContext, set_threads, start_distributed, stop_distributed
from tokenverse_pp.data.samplers import load_cuts, open_rounds
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.models.bundle import build_model, get_tokenizer, spelled_as_before
from tokenverse_pp.models.checkpoint import list_checkpoints
from tokenverse_pp.tasks import build_tasks, load_plugins
from tokenverse_pp.training.checkpoints import find_start, recover_run
from tokenverse_pp.training.failures import STOPPED, StopRequest, explaining_device_errors, join_watch, looking_after
from tokenverse_pp.training.inputs import check_data, has_features, make_inputs, same_corpora
from tokenverse_pp.training.storage import check_storage, open_remote, share_checkpoints
from tokenverse_pp.training.trainer import Trainer
from tokenverse_pp.training.transfer import before_of, continue_vectors, read_source
from tokenverse_pp.training.validation import Validator

log = logging.getLogger("tokenverse_pp.recipes.train")


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Read the configuration, join the other ranks, train."""
    config = parse_config(argv, description=__doc__.splitlines()[0], find_model=model_to_continue)
    is_remote = url_of(config.training.exp_dir) is not None
    world = start_distributed(config.training.storage == "shared" and not is_remote)
    if not world.is_first:
        quieten()
    watch = join_watch(world, config.training.peer_timeout)
    sources = allow_sources(config.data.allow_commands, config.data.allow_urls)
    with looking_after(watch), sources, explaining_device_errors(config.training):
        folder = train(config, world, StopRequest(watch))
    stop_distributed()
    if folder is None:
        sys.exit(STOPPED)


def train(config: Config, world: DistributedContext, stop: Optional[StopRequest] = None) -> Optional[Path]:
    """Train by the configuration; return the folder of the final model, or None if ``stop`` was requested before.

    All input is checked before the trainer writes anything.
    """
    remote = open_remote(config, world)
    exp_dir = Path(config.training.exp_dir)
    check_storage(exp_dir, world)
    world.from_writer(lambda: recover_run(exp_dir))
    if not world.shared and str(config.training.resume).lower() != "false":
        share_checkpoints(exp_dir, world)

    # Resolve names of the model to continue and of the encoder to folders.
    folder, init_from = Path(), config.training.init_from
    if init_from:
        folder = model_to_continue(config)
        if not Path(init_from).is_dir() and str(folder) != config.training.exp_dir:
            config.training.init_from = str(folder)
    encoder = world.from_writer(lambda: locate_encoder(config.model.encoder.name, folder))
    config.model.encoder.name = world.from_writer(lambda: keep_encoder(encoder, folder, exp_dir / ENCODER_FOLDER))

    # Tasks and data.
    config.tasks.plugins = load_plugins(config.tasks.plugins)
    config.tasks.languages = spelled_as_before(config)
    tasks = build_tasks(config.tasks.names, config.tasks.options())
    rounds = open_rounds(config.data, config.training.seed)
    valid = load_cuts(config.data.valid, "data.valid") if config.data.valid else []
    if config.data.stored_features is None:
        config.data.stored_features = has_features(config)

    corpora = same_corpora(rounds, world, config.data.valid)

    # What to start from: a checkpoint of this run, another model, or nothing.
    start = world.from_writer(lambda: find_start(config))
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
    threads = set_threads(config.training.threads, model)
    if config.training.strategy == "ddp" or world.size == 1:  # FSDP moves only shards to the device
        model = model.to(world.device)

    # Batches: which cuts are used, and in which order.
    inputs = make_inputs(config, world, tasks, tokenizer, model.encoder, rounds, valid, begins=start is None)

    # Train.
    dataset = inputs.dataset
    validator = Validator(inputs.held_out, dataset, config, world) if inputs.held_out else None
    trainer = Trainer(config, model, dataset, inputs.sampler, validator, world, before, remote)
    trainer.start(start, source, corpora)
    inputs.unknown_in_valid.finish("data.valid", log.info)
    size = f"{trainer.trained / 1e6:.2f} M" if trainer.trained >= 1e4 else str(trainer.trained)
    read = "stored features" if config.data.stored_features else "audio"
    log.info(
        f"tasks {', '.join(tasks.names)}; vocabulary {tokenizer.vocab_size}; {size} trained parameters; "
        f"input: {read}; {threads}"
    )
    model_folder = trainer.run(stop)
    with world.failing_together():
        if remote:
            remote.upload()
            remote.wait(needed=True)
    if model_folder:
        log.info(f"model: {f'{remote.url}/{model_folder.name}' if remote else model_folder}")
    return model_folder


def model_to_continue(config: Config) -> Path:
    """The folder of the model that ``training.init_from`` names, or of the run itself if that model is gone."""
    exp_dir = Path(config.training.exp_dir)
    try:
        return locate_model(str(config.training.init_from))
    except UserError:
        if not list_checkpoints(exp_dir):
            raise
        return exp_dir


if __name__ == "__main__":
    with report_errors():
        main()
