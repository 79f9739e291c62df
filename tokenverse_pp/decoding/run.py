"""Decoding a whole CutSet: each process its batches, on from where a stopped run was, one merged result."""

from __future__ import annotations

import datetime
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import torch.distributed as dist
from lhotse.cut import Cut
from tqdm import tqdm

from tokenverse_pp.decoding.batches import Decoded, Decoder, Record, plan_batches
from tokenverse_pp.decoding.options import DecodeOptions
from tokenverse_pp.decoding.parts import Parts, batch_digest, collect, run_digest
from tokenverse_pp.errors import UserError
from tokenverse_pp.training.distributed import World
from tokenverse_pp.training.setup import Loaded

# One process may get an hour-long file at the end; the default patience of a process group is 10 to 30 minutes.
PATIENCE = datetime.timedelta(days=14)
LINES = 10  # refused cuts that each process names on the terminal; failures.jsonl has all
Keyed = Tuple[str, List[Cut]]


@dataclass(frozen=True)
class Outcome:
    """Records and failures in the order of the cuts, and the speed of this run."""

    records: List[Record]
    failures: List[Record]
    speed: Dict[str, Any]


def decode_all(
    loaded: Loaded,
    cuts: Sequence[Cut],
    options: DecodeOptions,
    folder: Path,
    world: World,
    resume: bool = True,
    tell: Callable[[str], None] = print,
) -> Optional[Outcome]:
    """Decode cuts, with all the processes of ``world``.

    Args:
        loaded: the model, on this process's device.
        cuts: the same in every process, ids unique.
        options: how to decode.
        folder: for part files, seen by all processes; the caller removes it once it has written its results.
        resume: take over batches that a stopped run left in ``folder``.
        tell: prints a line for the user.

    Returns:
        The merged result in the first process, None in all others.
    """
    parts = Parts(folder)
    decoder = Decoder(loaded, options)
    digest = run_digest(loaded, options)
    batches = [(batch_digest(digest, group, options.stored_features), group) for group in plan_batches(cuts, options)]
    done = world.from_first(lambda: prepare(parts, batches, resume, tell))
    mine = share([item for item in batches if item[0] not in done], world)
    started = time.monotonic()
    try:
        _decode_share(decoder, mine, parts, world)
    finally:
        parts.close()
    audio = sum(cut.duration for _, group in mine for cut in group)
    speed = measure(world, audio, time.monotonic() - started)
    if not world.is_first:
        return None
    merged = collect(parts.read(), [key for key, _ in batches])
    order = {cut.id: number for number, cut in enumerate(cuts)}
    speed["cuts_decoded_before"] = sum(len(group) for key, group in batches if key in done)
    by_order: Callable[[Record], int] = lambda record: order[record["id"]]
    return Outcome(sorted(merged.records, key=by_order), sorted(merged.failures, key=by_order), speed)


def prepare(parts: Parts, batches: Sequence[Keyed], resume: bool, tell: Callable[[str], None]) -> Set[str]:
    """The keys of those batches that need not be decoded again; what else there is is removed, and the user told."""
    found = parts.read()
    done = {key for key, _ in batches if key in found} if resume else set()
    if done:
        before, total = (sum(len(g) for k, g in batches if every or k in done) for every in (False, True))
        tell(f"going on: {before} of {total} cuts were decoded before ({parts.folder})")
    elif found:
        why = "the model, the options or the cuts are others" if resume else "--no-resume"
        tell(f"starting anew: {parts.folder} holds {len(found)} batches of a run that was stopped, but {why}")
        parts.remove()
    return done


def share(batches: Sequence[Keyed], world: World) -> List[Keyed]:
    """This process's part: the batches in turn to whoever has least audio (padded seconds) so far."""
    loads = [0.0] * world.size
    mine: List[Keyed] = []
    for key, group in batches:
        rank = loads.index(min(loads))
        loads[rank] += len(group) * max(cut.duration for cut in group)
        if rank == world.rank:
            mine.append((key, group))
    return mine


def _decode_share(decoder: Decoder, mine: Sequence[Keyed], parts: Parts, world: World) -> None:
    """Decode this process's batches into its part file, with a progress bar in the first process."""
    total, refused, audio, started = sum(len(group) for _, group in mine), 0, 0.0, time.monotonic()
    name = f"rank 0 of {world.size}" if world.size > 1 else "decoding"
    # disable=None: no bar where stderr is no terminal.
    with tqdm(total=total, unit="cut", desc=name, disable=None if world.is_first else True) as bar:
        for key, group in mine:
            done = decoder(group)
            parts.append(world.rank, key, done)
            refused = _name_refused(done, refused)
            audio += sum(cut.duration for cut in group)
            bar.update(len(group))
            bar.set_postfix_str(f"rtf {(time.monotonic() - started) / max(audio, 1e-9):.4f}")


def _name_refused(done: Decoded, before: int) -> int:
    """Tell of cuts that were refused, up to a number of lines; returns how many there are now."""
    for number, failure in enumerate(done.failures, start=before):
        if number < LINES:
            tqdm.write(f"refused: {failure['reason']}", file=sys.stderr)
        elif number == LINES:
            tqdm.write("refused: more cuts, see failures.jsonl", file=sys.stderr)
    return before + len(done.failures)


def measure(world: World, audio: float, seconds: float) -> Dict[str, Any]:
    """Wait for all processes -> seconds of audio, wall-clock seconds and real-time factor, of all and of each."""
    mine = [0.0] * (2 * world.size)
    mine[2 * world.rank : 2 * world.rank + 2] = [audio, seconds]
    if world.size > 1:
        # The default group's patience may be over before the slowest process is done.
        dist.barrier(dist.new_group(timeout=PATIENCE, backend="gloo"))
    both = world.sum(mine)
    ranks = [_speed(both[i], both[i + 1]) for i in range(0, len(both), 2)]
    return {**_speed(sum(both[::2]), max(both[1::2])), "ranks": ranks}


def _speed(audio: float, seconds: float) -> Dict[str, float]:
    return {"audio_seconds": audio, "wall_seconds": seconds, "rtf": seconds / audio if audio > 0 else 0.0}


def check_ids(cuts: Sequence[Cut]) -> None:
    """See that no two cuts have the same id: a hypothesis goes by it (raises UserError)."""
    seen: Set[str] = set()
    for cut in cuts:
        if cut.id in seen:
            raise UserError(f"cut {cut.id}: field 'id': another cut has it already")
        seen.add(cut.id)
