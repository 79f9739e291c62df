"""Decoding a whole CutSet with one process, several, or a cluster, and part files from which a stopped run continues.

Batches are identified in the part files (`Parts`) by a digest of model, options, cuts and audio files, so results of
another model, other options or other audio are not reused.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import logging
import socket
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import torch
import torch.distributed as dist
from lhotse.cut import Cut
from tqdm import tqdm

import tokenverse_pp
from tokenverse_pp.base.engine import Compute, Line, Parts, current_engine
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import feed
from tokenverse_pp.base.options import DecodeOptions
from tokenverse_pp.data.dataset import batch_digest
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.decoding.language_models import lm_parts
from tokenverse_pp.decoding.recognizer import Recognizer, Record, plan_batches
from tokenverse_pp.models.bundle import ModelBundle

LOG = logging.getLogger(__name__)
# Time to wait for the slowest process, which may get an hour-long file last; process groups wait 10 to 30 minutes.
PATIENCE = datetime.timedelta(days=14)
NAMED = 10  # refused cuts that each process names on the terminal; failures.jsonl has all
LINES = 100  # batches that are sent at once
Keyed = Tuple[str, List[Cut]]


def run_digest(loaded: ModelBundle, options: DecodeOptions) -> str:
    """A digest of everything but the cuts: program version, files of model and language model, encoder, options."""
    digest = hashlib.sha256(f"{tokenverse_pp.__version__} {loaded.config.model.encoder}".encode())
    for path in sorted(loaded.folder.iterdir()) if loaded.folder is not None else ():
        if path.is_file():
            digest.update(f"\n{path.name}\n".encode())
            feed(digest, path)
    for path in lm_parts(Path(options.search.lm)) if options.search.lm else ():
        feed(digest, path)
    digest.update(json.dumps(dataclasses.asdict(options), sort_keys=True, default=str).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Outcome:
    """Records and failures in the order of the cuts, and the speed of this run."""

    records: List[Record]
    failures: List[Record]
    speed: Dict[str, Any]


def decode_all(
    loaded: ModelBundle,
    cuts: Sequence[Cut],
    options: DecodeOptions,
    folder: Path,
    world: DistributedContext,
    resume: bool = True,
    tell: Callable[[str], None] = print,
    start: Optional[Callable[[], Compute]] = None,
) -> Optional[Outcome]:
    """Decode cuts with all processes of ``world`` and the current engine.

    Args:
        loaded: the model, on this process's device.
        cuts: the same in every process, with unique ids.
        folder: for part files; machines need not share it. The callers (the first process of each machine) remove it
            once the results are written.
        resume: reuse batches that a stopped run left in ``folder``.
        start: for workers of a cluster: loads the model, and returns `batch_line` of its recognizer.

    Returns:
        The merged result in the first process, None in all others.

    Raises:
        UserError: in all processes, if machines have different cuts or models.
    """
    parts = Parts(folder, world.rank)
    decoder = Recognizer(loaded, options)
    digest = run_digest(loaded, options)
    check_same(world, digest, cuts)
    groups = plan_batches(cuts, options)
    # Copies of an audio file may differ in their modification time.
    keys = world.from_first(lambda: [batch_digest(digest, group, options.stored_features) for group in groups])
    batches = list(zip(keys, groups))
    done = prepare(parts, batches, resume, tell, world)
    mine = share([item for item in batches if item[0] not in done], world)
    started = time.monotonic()
    try:
        _decode_share(start or (lambda: partial(batch_line, decoder)), mine, parts, world)
    finally:
        parts.close()
    audio = sum(cut.duration for _, group in mine for cut in group)
    speed = measure(world, audio, time.monotonic() - started)
    lines = gather_lines(parts, keys, world)
    if not world.is_first:
        return None
    order = {cut.id: number for number, cut in enumerate(cuts)}
    records, failures = (
        sorted((record for key in keys for record in lines[key][kind]), key=lambda record: order[record["id"]])
        for kind in ("records", "failures")
    )
    speed["cuts_decoded_before"] = sum(len(group) for key, group in batches if key in done)
    return Outcome(records, failures, speed)


def check_same(world: DistributedContext, run: str, cuts: Sequence[Cut]) -> None:
    """Check that all processes have the same cuts, model and options (raises UserError in all, naming a machine)."""
    ids = hashlib.sha256(json.dumps([cut.id for cut in cuts]).encode()).hexdigest()
    (first, *expected), *others = world.gather((socket.gethostname(), run, ids))
    for host, *found in others:
        if found != expected:
            what = "model, encoder or options" if found[0] != expected[0] else "--cuts"
            raise UserError(f"{what}: on {host} they differ from those on {first}")


def prepare(
    parts: Parts, batches: Sequence[Keyed], resume: bool, tell: Callable[[str], None], world: DistributedContext
) -> Set[str]:
    """Return the keys of batches that any machine decoded before. Remove part files of another run, with a message.

    On each machine the first process reads the part files.
    """
    found = set().union(*world.gather(set(parts.read()) if world.leads else set()))
    done = {key for key, _ in batches if key in found} if resume else set()
    before, total = (sum(len(g) for k, g in batches if every or k in done) for every in (False, True))
    if done and world.is_first:
        tell(f"going on: {before} of {total} cuts were decoded before ({parts.folder})")
    elif found and not done:
        why = "the model, the options or the cuts are others" if resume else "--no-resume"
        if world.is_first:
            tell(f"starting anew: {parts.folder} holds {len(found)} batches of a run that was stopped, but {why}")
        if world.leads:
            parts.remove()
        world.barrier()
    return done


def gather_lines(parts: Parts, keys: Sequence[str], world: DistributedContext) -> Dict[str, Line]:
    """Collect the lines of these batches from all machines in the first process (others get some of them).

    If machines share the folder, the first process finds all lines there, and nothing is sent.
    """
    wanted = set(keys)
    lines = {key: line for key, line in parts.read().items() if key in wanted} if world.leads else {}
    held = world.gather(set(lines))
    for rank in range(1, world.size):
        wanting = sorted(held[rank].difference(*held[:rank]))
        if not wanting:
            continue
        texts = (json.dumps([lines[key] for key in wanting[at : at + LINES]]) for at in range(0, len(wanting), LINES))
        for block in world.send_from(rank, (text.encode() for text in texts)):
            lines.update((line["key"], line) for line in json.loads(block) if world.is_first)
    return lines


def share(batches: Sequence[Keyed], world: DistributedContext) -> List[Keyed]:
    """Return this process's batches: each goes to the process with the least audio (padded seconds) so far."""
    loads = [0.0] * world.size
    mine: List[Keyed] = []
    for key, group in batches:
        rank = loads.index(min(loads))
        loads[rank] += len(group) * max(cut.duration for cut in group)
        if rank == world.rank:
            mine.append((key, group))
    return mine


def batch_line(decoder: Recognizer, group: Sequence[Cut]) -> Line:
    """Decode a batch, and return its line of the part file."""
    done = decoder(group)
    return {"records": done.records, "failures": done.failures}


def _decode_share(start: Callable[[], Compute], mine: Sequence[Keyed], parts: Parts, world: DistributedContext) -> None:
    """Decode this process's batches into its part file, with a progress bar in the first process."""
    total, refused, audio, started = sum(len(group) for _, group in mine), 0, 0.0, time.monotonic()
    name = f"rank 0 of {world.size}" if world.size > 1 else "decoding"
    # disable=None: no bar if stderr is not a terminal.
    with tqdm(total=total, unit="cut", desc=name, disable=None if world.is_first else True) as bar:
        results = current_engine().run(start, mine, parts, torch.get_num_threads(), uses_gpu=True)
        for line, (_, group) in zip(results, mine):
            for failure in line["failures"]:
                if refused < NAMED:
                    LOG.warning("refused: %s", failure["reason"])
                elif refused == NAMED:
                    LOG.warning("refused: more cuts, see failures.jsonl")
                refused += 1
            audio += sum(cut.duration for cut in group)
            bar.update(len(group))
            bar.set_postfix_str(f"rtf {(time.monotonic() - started) / max(audio, 1e-9):.4f}")


def measure(world: DistributedContext, audio: float, seconds: float) -> Dict[str, Any]:
    """Wait for all processes. Return seconds of audio, wall-clock seconds and real-time factor, of all and of each."""
    mine = [0.0] * (2 * world.size)
    mine[2 * world.rank : 2 * world.rank + 2] = [audio, seconds]
    if world.size > 1:
        # The default group may time out before the slowest process is done.
        dist.barrier(dist.new_group(timeout=PATIENCE, backend="gloo"))
    both = world.sum(mine)
    ranks = [_speed(both[i], both[i + 1]) for i in range(0, len(both), 2)]
    return {**_speed(sum(both[::2]), max(both[1::2])), "ranks": ranks}


def _speed(audio: float, seconds: float) -> Dict[str, float]:
    return {"audio_seconds": audio, "wall_seconds": seconds, "rtf": seconds / audio if audio > 0 else 0.0}


def check_ids(cuts: Sequence[Cut]) -> None:
    """Check that no two cuts have the same id, which identifies a hypothesis (raises UserError)."""
    seen: Set[str] = set()
    for cut in cuts:
        if cut.id in seen:
            raise UserError(f"cut {cut.id}: field 'id': another cut has it already")
        seen.add(cut.id)
