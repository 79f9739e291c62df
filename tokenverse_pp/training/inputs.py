"""What a run trains on: the checks of its data before the first step, its dataset and its sampler."""

from __future__ import annotations

import contextlib
import logging
import socket
from array import array
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
from lhotse.cut import Cut
from tqdm import tqdm

from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions, Config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import url_of
from tokenverse_pp.data.access import recordings
from tokenverse_pp.data.augment import Augmentation
from tokenverse_pp.data.batching import paired_limits
from tokenverse_pp.data.dataset import (
    Activation,
    TransducerDataset,
    Unknown,
    UnknownCounts,
    Usable,
    check_recording,
    features_key,
)
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.editing.stats import corpus_names
from tokenverse_pp.data.labels import find_problems, labelled_cut, labelled_tasks
from tokenverse_pp.data.lines import name_hash
from tokenverse_pp.data.manifests import ManifestRow, read_rows, reading_bar
from tokenverse_pp.data.samplers import Rounds, TrainSampler, WholeSource, open_source
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.models.encoders import Encoder
from tokenverse_pp.models.encoders.base import make_frames_of
from tokenverse_pp.models.stored_features import carry_features, check_features, keys_of
from tokenverse_pp.tasks import TaskSet
from tokenverse_pp.training.validation import training_chunks, validation_chunks

LOG = logging.getLogger(__name__)
ALONE = DistributedContext()
# Ranks from which `data.rank_parts` is advised: drawing batches of 240 s for 33 ranks takes as long as a step.
PARTS_FROM = 32
INDEX_FROM = 5_000_000  # cuts from which an index is advised: reading them without one takes over 10 s
PART = 10_000  # cuts per rank and round: with fewer, many batches are remainders of the 20 buckets
MOST_HASHES = 20_000_000  # ids that ranks compare at once: 160 MB, and twice that to sort them
SAID_FROM = 20  # megabytes of manifests from which the check takes minutes: 200,000 cuts, if gzipped


class Inputs(NamedTuple):
    """What a run draws its batches from."""

    dataset: TransducerDataset
    sampler: TrainSampler
    held_out: List[Cut]
    """The cuts of ``data.valid`` that can be used."""
    unknown_in_valid: Unknown
    """Counts their ``<unk>`` tokens."""


def make_inputs(
    config: Config,
    world: DistributedContext,
    tasks: TaskSet,
    tokenizer: Tokenizer,
    encoder: Encoder,
    rounds: Rounds,
    valid: Sequence[Cut],
    begins: bool = True,
) -> Inputs:
    """The dataset, the sampler of this rank and the validation cuts of a run.

    Args:
        encoder: gives the number of frames of a cut.
        begins: whether the run is new; then log `growth_advice`, whose options must be set from the start.
    """
    t = config.tasks
    activation = Activation(t.activation, t.activation_prob, config.training.seed, t.paired)
    augmentation = Augmentation(config.data.augment, config.training.seed) if config.data.augment.enabled else None
    sound, speed = (augmentation.load, augmentation.change_speed) if augmentation else (None, None)
    chunks = training_chunks(config)
    files = corpus_names(config.data.train)
    stored = bool(config.data.stored_features)
    dataset = TransducerDataset(tasks, tokenizer, activation, stored, chunks, sound, files)
    usable = Usable(
        dataset,
        make_frames_of(encoder),
        config.data.min_seconds,
        longest_seconds(config, encoder),
        LOG.info,
        config.data.max_tokens,
        make_frames_of(encoder, at_seam=True) if stored else None,
    )
    held_out = [cut for cut in valid if usable(cut)]
    unknown_in_valid, usable.unknown = usable.unknown, Unknown(tokenizer)

    def wanted(cut: Cut) -> bool:
        return usable(cut) and (not t.full_only or set(tasks.names) <= set(labelled_tasks(cut)))

    def looked(found: Sequence[Tuple[UnknownCounts, List[str]]]) -> None:
        for rank, (unknown, lines) in enumerate(found):
            usable.unknown.put(unknown)
            for line in lines if len(found) > 1 and rank != world.rank else ():  # it has already reported its own
                LOG.info(f"rank {rank}: {line}")
        usable.unknown.finish("data.train", LOG.info, config.data.max_unk_share)

    limits = paired_limits(config.data) if t.paired else config.data
    for line in growth_advice(config, world.size, rounds) if begins else ():
        LOG.info(line)
    seed, tokens_of = config.training.seed, dataset.count_tokens
    sampler = TrainSampler(rounds, limits, seed, world, wanted, looked, tokens_of, speed, usable.take)
    return Inputs(dataset, sampler, held_out, unknown_in_valid)


def longest_seconds(config: Config, encoder: Encoder) -> float:
    """Return the longest duration of a cut: ``data.max_seconds``, or the encoder's limit if that is lower.

    Raises UserError if the encoder cannot run in the chunks of ``model.streaming``.
    """
    s, limit = config.model.streaming, encoder.backbone.max_samples
    for chunks in (ChunkOptions(ms, strict=s.strict) for ms in s.chunk_ms if ms):
        try:
            encoder.grid(chunks)
        except UserError as error:
            raise UserError(f"--model.streaming.chunk_ms={s.chunk_ms}: {error}") from None
    if limit is None or config.data.stored_features or (s.chunk_ms and 0 not in s.chunk_ms):
        return config.data.max_seconds
    return min(config.data.max_seconds, limit / SAMPLE_RATE)


def growth_advice(config: Config, ranks: int, rounds: Rounds) -> Iterator[str]:
    """Yield a line for each option that a run with so many ranks and cuts should set but does not (docs/scaling.md)."""
    part = rounds.epoch_cuts // rounds.per_epoch // ranks
    large = rounds.epoch_cuts // ranks >= PART  # with fewer cuts no round is large enough
    if config.data.rank_parts and ranks > 1 and part < PART and large:
        yield (
            f"--data.rank_parts: {part} cuts a rank and round leave many batches half full; "
            f"--data.round_cuts {2 * PART * ranks} would fill them"
        )
    if not config.data.rank_parts and ranks >= PARTS_FROM and large:
        yield (
            f"each of {ranks} ranks reads the cuts of all, which may take longer than a step: --data.rank_parts true "
            f"--data.round_cuts {2 * PART * ranks} lets each read its own"
        )
    for source in rounds.sources:
        has_lines = not isinstance(source, WholeSource) and url_of(source.path) is None
        if has_lines and source.index is None and source.count >= INDEX_FROM:
            yield f"{source.path}: {source.count} cuts are read to start: run `tokenverse-pp manifest index` on it once"


def has_features(config: Config) -> bool:
    """Whether ``data.stored_features: null`` means true: all files have the encoder's features, no augmentation."""
    first = [next(open_source(path).open_at(0)) for path in [*config.data.train, *config.data.valid]]
    return not config.data.augment.enabled and carry_features(first, config.model)


def check_data(config: Config, tasks: TaskSet, world: DistributedContext = ALONE, resumed: bool = False) -> None:
    """Check the labels of all cuts, and that the audio (or the stored features) of a sample of them exists.

    Each rank checks its part of the lines of each manifest and of the sample, so that eight ranks are eight times as
    fast as one.

    Args:
        config: ``data.validate_audio`` is the size of the sample.
        resumed: skip the labels of ``data.train``. They were checked when the run began, and a run does not resume with
            changed files. With ``training.allow_changed_data`` they are checked again.

    Raises:
        UserError: the same on all ranks, naming the first problem.
    """
    d = config.data
    known = d.train if resumed and not config.training.allow_changed_data else []
    trained, others = (
        [manifest for path in paths if path not in known for manifest in open_source(path).manifests()]
        for paths in (d.train, d.valid)
    )
    manifests = [*trained, *others]
    size = sum(path.stat().st_size for path in manifests) / 1e6
    if size > SAID_FROM:
        LOG.info(f"checking the labels of {size:.0f} MB of manifests on {world.size} ranks (--data.validate)")
    labelled: Set[str] = set()
    with reading_bar(manifests, "labels") if world.is_first else contextlib.nullcontext() as bar:
        for manifest in trained:
            labelled.update(check_labels(manifest, tasks, world, bar))
        for manifest in others:
            check_labels(manifest, tasks, world, bar)
    labelled.update(*world.gather(labelled))
    nothing = ", ".join(name for name in tasks.names if name not in labelled)
    if nothing and trained and world.is_first:
        LOG.warning(f"no cut of data.train is labelled for {nothing}: the model cannot learn this")
    for path in (*d.train, *d.valid):
        with world.failing_together():
            check_sample(path, config, world)


def same_corpora(rounds: Rounds, world: DistributedContext, valid: Sequence[str] = ()) -> List[Dict[str, Any]]:
    """Return size and SHA-256 of each training corpus; the first process of each machine reads it, or its index.

    Args:
        valid: manifests that are also compared, if there are several machines.

    Raises:
        UserError: on all ranks, if copies on machines differ: each rank takes its share of the batches that all draw,
            or with ``data.rank_parts`` its own part of the cuts, and all must compute the same scores.
    """
    mine = None
    compared = valid if sum(world.gather(world.leads)) > 1 else ()
    with world.failing_together():
        if world.leads:
            sources = [*rounds.sources, *(open_source(path, "data.valid") for path in compared)]
            mine = [source.fingerprint() for source in sources]
    found = world.gather((socket.gethostname(), mine))
    (first, corpora), *others = [(host, each) for host, each in found if each is not None]
    for host, each in others:
        for number, (ours, theirs) in enumerate(zip(corpora, each)):
            if ours["sha256"] != theirs["sha256"]:
                option = "data.train" if number < len(rounds.sources) else "data.valid"
                sizes = f"{theirs['bytes']} bytes, not {ours['bytes']}" if theirs["bytes"] != ours["bytes"] else "other"
                raise UserError(f"--{option}: {theirs['path']} on {host} differs from that on {first} ({sizes})")
    return corpora[: len(rounds.sources)]


def check_labels(manifest: Path, tasks: TaskSet, world: DistributedContext, bar: Any = None) -> Set[str]:
    """Check a manifest against the label schema, each rank its part, and that no id occurs twice.

    Returns the tasks that cuts of this rank's part are labelled for. Raises UserError on all ranks, naming the first
    problem and the number of others in that rank's part.
    """
    hashes = array("Q")  # of ids
    labelled: Set[str] = set()

    def noted(row: ManifestRow) -> Cut:
        hashes.append(name_hash(row.id))
        cut = labelled_cut(row)
        with contextlib.suppress(UserError):  # `find_problems` tells it
            labelled.update(labelled_tasks(cut))
        return cut

    with world.failing_together():
        rows = read_rows(manifest, bar, (world.rank, world.size))
        problems = [f"cut {cut_id}: {text}" for cut_id, text in find_problems(map(noted, rows), tasks)]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise UserError(f"{manifest}: {problems[0]}{more}")
    # Repeated ids within one part were found above; the ranks compare the others, some at a time.
    mine, repeated = np.frombuffer(hashes, dtype=np.uint64), 0
    times = -(-sum(world.gather(len(mine))) // MOST_HASHES)
    for number in range(times):
        ids = np.concatenate(world.gather(mine[mine % np.uint64(times) == number]))
        repeated += len(ids) - len(np.unique(ids))
    if repeated:
        raise UserError(
            f"{manifest}: {repeated} cuts have the id of another one: `tokenverse-pp manifest validate {manifest}` "
            "names them"
        )
    return labelled


def check_sample(path: str, config: Config, world: DistributedContext, most: Optional[int] = None) -> None:
    """Check that audio or stored features exist for this rank's part of a sample of a file's cuts.

    The sample (``most`` cuts, or ``data.validate_audio``) of a Shar folder are the first cuts of its shards; all its
    tar files must have an end. Those in object storage are not fetched. Raises UserError, naming the first cut whose
    audio is missing, or its features in a chunk setting of the run.
    """
    most = config.data.validate_audio if most is None else most
    total, cuts = open_source(path).to_check(most, world.rank, world.size)
    keys = keys_read(path, config)
    for cut in tqdm(cuts, "audio", total, leave=False, disable=None if world.is_first else True):
        if config.data.stored_features:
            check_features(cut, config.model.encoder, keys)
        elif any(source.type == "shar" for recording in recordings(cut) for source in recording.sources):
            raise UserError(f"{path}: cut {cut.id}: its audio is not in the Shar folder (recording.*.tar)")
        else:
            check_recording(cut)


def keys_read(path: str, config: Config) -> List[str]:
    """The keys of the stored features that a run reads of a file of ``data.train`` or ``data.valid``, or of both."""
    keys = keys_of(config.model.streaming) if path in config.data.train else []
    if path in config.data.valid:
        chunks = validation_chunks(config)  # draws from one setting only
        keys.append(features_key(chunks([], 0) if chunks else None))
    return keys
