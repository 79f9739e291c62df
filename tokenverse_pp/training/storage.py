"""Experiment folders of several machines: that they are shared or not, as ``training.storage`` says, and equal.

With ``local`` each machine has a folder of its own. `share_checkpoints` makes them equal at the start of a run: a
machine may be new, or may have been away while the others trained.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import time
import uuid
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Set

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import BLOCK
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.models import checkpoint
from tokenverse_pp.training.checkpoints import set_aside
from tokenverse_pp.training.log import LOG_FILE

LOG = logging.getLogger(__name__)
SEEN_WITHIN = 10.0  # seconds until a new file must be visible on another machine: NFS caches folders
Offer = Dict[str, Any]  # name of a checkpoint -> checksums of its tensors


def check_storage(exp_dir: Path, world: DistributedContext) -> None:
    """Check that the machines share the experiment folder, or that none does, as ``training.storage`` says.

    Raises:
        UserError: on all processes, naming two machines.
    """
    hosts = dict(world.gather((world.machine, socket.gethostname())))
    if len(hosts) < 2:
        return
    token = world.from_first(lambda: uuid.uuid4().hex)
    marks = [exp_dir / f".machine-{number}-{token}" for number in sorted(hosts)]
    with world.failing_together():
        if world.leads:
            try:
                exp_dir.mkdir(parents=True, exist_ok=True)
                marks[world.machine].touch()
            except OSError as error:
                raise UserError(f"--training.exp_dir: {exp_dir}: cannot be written: {error.strerror}") from None
    seen = _seen(marks, world) if world.leads else set()
    found = world.gather((world.machine, seen))
    if world.leads:
        marks[world.machine].unlink(missing_ok=True)
    for machine, numbers in found:
        if numbers and world.shared and 0 not in numbers:
            raise UserError(
                f"--training.exp_dir: {exp_dir} of {hosts[machine]} is not that of {hosts[0]}: name a folder that all "
                "machines share, or pass --training.storage local"
            )
        for other in sorted(numbers - {machine}) if not world.shared else ():
            raise UserError(
                f"--training.storage=local: {exp_dir} is the same folder on {hosts[machine]} and {hosts[other]}: name "
                "a local folder, or pass --training.storage shared"
            )


def _seen(marks: List[Path], world: DistributedContext) -> Set[int]:
    """The numbers of the machines whose mark this machine sees; where the folder is shared, waits for the first."""
    until = time.monotonic() + (SEEN_WITHIN if world.shared else 0)
    while True:
        seen = {number for number, mark in enumerate(marks) if mark.exists()}
        if 0 in seen or time.monotonic() > until:
            return seen
        time.sleep(0.2)


def share_checkpoints(exp_dir: Path, world: DistributedContext) -> None:
    """Give all machines the checkpoints and the log of the one that has the latest intact checkpoint.

    Of its other checkpoints a machine that receives some removes those that the others have removed long since, and
    renames the rest to ``.aside``.

    Raises:
        UserError: on all processes, where a machine cannot write them.
    """
    offers = world.gather(_offer(exp_dir) if world.writes else None)
    source = max(range(world.size), key=lambda rank: (max(offers[rank] or {"": 0}), -rank))
    offered, mine = offers[source] or {}, offers[world.rank]
    receives = mine is not None and mine != offered
    for folder in checkpoint.list_checkpoints(exp_dir) if receives and offered else ():
        if folder.name < min(offered):  # first, since a disk may not hold both
            shutil.rmtree(folder, ignore_errors=True)
    for name, sums in offered.items():
        lacking = [rank for rank, offer in enumerate(offers) if offer is not None and offer.get(name) != sums]
        if lacking:
            folder = exp_dir / "checkpoints" / name
            _send_folder(folder, source, world.rank in lacking, world, needed=name == max(offered))
    if any(offer is not None and offer != offered for offer in offers):
        problem = _send_file(exp_dir / LOG_FILE, source, exp_dir / LOG_FILE if receives else None, world)
        with world.failing_together():
            if problem:
                raise UserError(problem)
        for folder in checkpoint.list_checkpoints(exp_dir) if receives else ():
            if folder.name not in offered:
                LOG.warning(f"set aside: {set_aside(folder)}")


def _offer(exp_dir: Path) -> Offer:
    """The checkpoints of this machine up to the latest intact one, with the checksums of their tensors."""
    found = checkpoint.list_checkpoints(exp_dir)
    while found and checkpoint.damage(found[-1]):
        found.pop()
    offer = {}
    for folder in found:
        try:
            sums = json.loads((folder / checkpoint.CHECKSUMS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            sums = {}
        # Configurations may name other folders, and versions differ: only the tensors must be the same.
        offer[folder.name] = [sums.get(name) for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER)]
    return offer


def _send_folder(folder: Path, source: int, receives: bool, world: DistributedContext, needed: bool) -> None:
    """Copy a checkpoint from one process to those that receive it, and check it there.

    One that is not ``needed`` and damaged is left out, with a warning: it may be so where it comes from.
    """
    files = world.gather(sorted(path.name for path in folder.iterdir()) if world.rank == source else [])[source]
    temporary = folder.with_name(folder.name + ".tmp")
    if receives:
        shutil.rmtree(temporary, ignore_errors=True)
    problems = [_send_file(folder / name, source, temporary / name if receives else None, world) for name in files]
    with world.failing_together():
        if not receives:
            return
        unwritten = next(filter(None, problems), None)
        problem = unwritten or checkpoint.damage(temporary)
        if problem:
            shutil.rmtree(temporary, ignore_errors=True)
            if unwritten or needed:
                raise UserError(problem)
            LOG.warning(f"{socket.gethostname()}: {folder.name} of rank {source} is left out: {problem}")
            return
        if folder.exists():
            LOG.warning(f"set aside: {set_aside(folder)}")
        temporary.rename(folder)
        LOG.warning(f"{socket.gethostname()}: {folder.name} received from rank {source}")


def _send_file(path: Path, source: int, target: Optional[Path], world: DistributedContext) -> Optional[str]:
    """Copy a file (empty if it is missing) from one process to those that name a target; return their problem."""
    problem = None
    received = world.send_from(source, _blocks(path) if world.rank == source else ())
    if target is not None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                file.writelines(received)
        except OSError as error:
            problem = f"{target}: cannot be written: {error.strerror}"
    for _ in received:  # all processes take part to the end, also where writing fails
        pass
    return problem


def _blocks(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as file:
            yield from iter(lambda: file.read(BLOCK * 16), b"")
