"""Damaged and foreign checkpoints: found by their checksums, refused in one line without them, never unpickled."""

import os
import pickle
import random
import shutil

import pytest
import torch

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import load_model
from tokenverse_pp.training.optim import make_optimizer

MUTATIONS = int(os.environ.get("FAULT_MUTATIONS", "200"))
NUMBERS = ["1e999", "-1", "NaN", "0.5", "18446744073709551616", "[]", "null", '"x"', "{}", "true"]


class Bomb:
    """Whoever unpickles it makes a folder."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def damage_bytes(data, random_):
    """Cut off, flip, overwrite, double or empty."""
    data = bytearray(data)
    at = random_.randrange(len(data))
    kind = random_.randrange(5)
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        data[at] ^= 1 << random_.randrange(8)
    elif kind == 2:
        end = min(len(data), at + random_.randrange(1, 200))
        data[at:end] = random_.randbytes(end - at)
    elif kind == 3:
        data[at:at] = data[at : at + 100]
    else:
        return b""
    return bytes(data)


def damage_text(data, random_):
    """Another value, a line less, or a line twice: still text."""
    lines = data.decode().splitlines()
    at = random_.randrange(len(lines))
    kind = random_.randrange(3)
    if kind == 0 and ":" in lines[at]:
        lines[at] = f"{lines[at].split(':')[0]}: {random_.choice(NUMBERS)}"
    elif kind == 1:
        del lines[at]
    else:
        lines.insert(at, lines[at])
    return "\n".join(lines).encode()


def damaged_copy(source, folder, random_):
    """A checkpoint with one file changed -> that file's name."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    path = random_.choice(sorted(folder.iterdir()))
    before = path.read_bytes()
    text = path.suffix in (".json", ".yaml") and random_.random() < 0.6
    after = (damage_text if text else damage_bytes)(before, random_)
    path.write_bytes(after if after != before else before + b" ")
    return path.name


@pytest.fixture(scope="module")
def newest(finished_run):
    """The last checkpoint of a finished run."""
    return checkpoint.list_checkpoints(finished_run)[-1]


def test_any_change_is_seen_by_the_checksums(newest, tmp_path):
    random_ = random.Random("checksums")
    assert checkpoint.damage(newest) is None
    for number in range(MUTATIONS):
        folder = tmp_path / newest.name
        name = damaged_copy(newest, folder, random_)
        found = checkpoint.damage(folder)
        assert found and found.count("\n") == 0 and str(folder) in found, (number, name)


@pytest.mark.slow
def test_damage_with_right_checksums_is_refused_in_one_line_or_does_no_harm(newest, tmp_path):
    random_ = random.Random("signed")
    refused = set()
    for number in range(MUTATIONS):
        folder = tmp_path / newest.name
        name = damaged_copy(newest, folder, random_)
        checkpoint.write_checksums(folder)
        try:
            loaded = load_model(folder)
            optimizer = make_optimizer(loaded.model, loaded.config.optim, ())
            tensors = checkpoint.read_tensors(folder / checkpoint.OPTIMIZER)
            checkpoint.load_optimizer(optimizer, tensors, folder / checkpoint.OPTIMIZER)
            checkpoint.read_state(folder)
        except UserError as error:
            refused.add(name)
            assert str(error).count("\n") == 0, (number, name, str(error))
    assert {checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.STATE, checkpoint.CONFIG} <= refused


@pytest.mark.parametrize("saved", [pickle.dump, torch.save])
@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.STATE, checkpoint.TOKENIZER])
def test_nothing_is_unpickled(newest, tmp_path, name, saved):
    folder, canary = tmp_path / newest.name, tmp_path / "canary"
    shutil.copytree(newest, folder)
    with (folder / name).open("wb") as file:
        saved({"w": Bomb(canary)}, file)
    checkpoint.write_checksums(folder)
    with pytest.raises(UserError):
        load_model(folder)
        checkpoint.read_tensors(folder / checkpoint.OPTIMIZER)
        checkpoint.read_state(folder)
    assert not canary.exists()
    if saved is pickle.dump:
        pickle.loads((folder / name).read_bytes())  # it would have gone off
        assert canary.exists()
