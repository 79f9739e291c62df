"""Model folders with random weights, as small as they get (pytest puts this folder on the path)."""

from __future__ import annotations

import dataclasses

import yaml
from toy_runs import toy_parts

from tokenverse_pp.models import checkpoint


def write_model(corpus, folder, **changes):
    """A model folder as training writes it, of a model that nobody trained; changes as `toy_options` takes them."""
    parts = toy_parts(corpus, **changes)
    config = yaml.safe_dump(dataclasses.asdict(parts.config), sort_keys=False)
    checkpoint.write_folder(
        folder,
        {checkpoint.WEIGHTS: parts.model.checkpoint_state()},
        {checkpoint.CONFIG: config.encode(), checkpoint.TOKENIZER: parts.tokenizer.model},
    )
    return folder


def write_speech(corpus, folder, name="speech"):
    """A file of 1.5 s of toy speech (random models write a token a frame) -> its path and its samples."""
    import soundfile
    from toy_runs import read_cuts

    from tokenverse_pp.data.dataset import load_inputs

    samples = load_inputs(read_cuts(corpus, "test")[0]).numpy()[:24000]
    path = folder / f"{name}.wav"
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    return path, samples
