"""Features of a frozen encoder, computed once and stored with the cuts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import re
import socket
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence

import numpy as np
import torch
from lhotse import CutSet
from lhotse.array import Array
from lhotse.cut import Cut, MixedCut
from lhotse.features.io import NumpyFilesWriter
from tqdm import tqdm

import tokenverse_pp
from tokenverse_pp.base.config import ChunkOptions, ModelConfig, StreamingConfig
from tokenverse_pp.base.engine import Parts, current_engine
from tokenverse_pp.base.errors import CONTROL, UserError
from tokenverse_pp.base.files import check_shared, feed
from tokenverse_pp.data.access import SCHEME, SourceAccess, allow_sources, current_access
from tokenverse_pp.data.dataset import FEATURES, batch_digest, collate, features_key, features_manifest, load_inputs
from tokenverse_pp.models.encoders import Encoder, EncoderConfig, build_encoder

ORIGIN = "encoder_features_of"  # cut.custom key: which encoder and layers made the features
LONGEST_NAME = 150  # characters of a cut's id in the name of its file


def features_origin(config: EncoderConfig) -> Dict[str, object]:
    """What determines the features at the seam: the pretrained encoder and its layers."""
    split = config.kind == "split"
    layers = {"split_layer": config.split_layer} if split else {"layers": list(config.layers)}
    return {"name": Path(config.name).name, **layers}


def check_origin(cut: Cut, config: EncoderConfig) -> None:
    """Check that a cut's stored features come from the encoder of the configuration (raises UserError)."""
    found, expected = (cut.custom or {}).get(ORIGIN), features_origin(config)
    if found is None:
        raise UserError(f"cut {cut.id}: no stored features; run `tokenverse-pp manifest store-features` first")
    if found != expected:
        raise UserError(
            f"cut {cut.id}: its features were stored by {found}, but the configuration's encoder is {expected}"
        )


def check_features(cut: Cut, config: EncoderConfig, keys: Iterable[str]) -> None:
    """Check that a cut has stored features of the configuration's encoder under all ``keys``, and that they exist.

    Files are looked up, not read; other storage is not. Raises UserError, naming the cut and the key or file.
    """
    check_origin(cut, config)
    for key in keys:
        manifest = features_manifest(cut, key)
        folder, name = str(manifest.storage_path), str(manifest.storage_key)
        is_file = manifest.storage_type == NumpyFilesWriter.name and not SCHEME.match(folder)
        if is_file and not Path(folder, name).is_file():
            raise UserError(f"cut {cut.id}: stored features {Path(folder, name)}: no such file")


def keys_of(streaming: StreamingConfig) -> List[str]:
    """The keys of the stored features of every chunk setting that training draws, each once."""
    s = streaming
    every = product(s.chunk_ms, s.left_chunks, s.sinks) if s.chunk_ms else [(0, -1, 0)]
    return list(dict.fromkeys(features_key(ChunkOptions(ms, left, sinks, s.strict)) for ms, left, sinks in every))


def carry_features(cuts: Iterable[Cut], config: ModelConfig) -> bool:
    """Whether all cuts have stored features of the model's encoder, for every chunk setting that training draws."""
    if config.encoder.kind == "finetune":
        return False
    try:
        for cut in cuts:
            check_features(cut, config.encoder, keys_of(config.streaming))
    except UserError:
        return False
    return True


def perturbed(cuts: CutSet, speeds: Sequence[float]) -> CutSet:
    """The cuts at every speed (lhotse's `perturb_speed`: pitch and tempo change together, ids get a suffix)."""
    every: List[Cut] = []
    for speed in speeds:
        every.extend(cut if speed == 1.0 else cut.perturb_speed(speed) for cut in cuts)
    return CutSet.from_cuts(every)


def store_features(
    cuts: CutSet,
    encoder: Encoder,
    config: EncoderConfig,
    storage_dir: Path,
    dtype: str = "float16",
    max_duration: float = 60.0,
    bf16: bool = False,
    chunks: Optional[ChunkOptions] = None,
    jobs: int = 1,
    parts: Optional[Parts] = None,
) -> CutSet:
    """Run the frozen half of an encoder over every cut and store its output with lhotse.

    Args:
        cuts: with audio; each is one utterance.
        encoder: of kind ``frozen`` or ``split``.
        storage_dir: folder for one ``.npy`` file per cut, (T, F).
        dtype: type of the stored numbers; float16 halves the size at a relative error of 5e-4.
        max_duration: seconds of audio in a batch.
        bf16: autocast the encoder to bfloat16 (relative error about 1e-2).
        chunks: compute the features as in streaming with these chunks; None: full context. Each setting is stored
            separately; multi-chunk training reads the features of the chunks that it draws.
        jobs: number of processes. If more than one, each loads the encoder of ``config``, on the GPUs in turn or with
            a share of the CPU threads. A cluster (`current_engine`) sets its own number of workers.
        parts: where a cluster keeps the manifests of stored batches. Manifests of another run are deleted.

    Returns:
        The cuts, in their order, with the array's manifest in ``custom``.

    Raises:
        UserError: the encoder has no frozen half, or a cut is mixed.
    """
    if not encoder.frozen_prefixes():
        raise UserError("only the features of a frozen half can be stored (encoder.kind=frozen or split)")
    mixed = next((cut for cut in cuts if isinstance(cut, MixedCut)), None)
    if mixed is not None:  # it has no custom fields of its own
        raise UserError(f"cut {mixed.id}: a mixed cut holds no features; store the mixed audio first")
    storage_dir.mkdir(parents=True, exist_ok=True)
    key = features_key(chunks)
    if chunks is not None and chunks.full:
        chunks = None
    origin = features_origin(config)
    work = StoringJob(str(storage_dir), key[len(FEATURES) :], dtype, bf16, chunks, current_access())
    groups = list(batches_of(sorted(cuts, key=lambda cut: cut.duration), max_duration))
    if parts is not None and not current_engine().is_cluster:
        parts.remove()  # they point to arrays that are overwritten now
    done: Dict[str, Cut] = {}
    with contextlib.ExitStack() as stack:
        arrays: Iterator[List[Array]] = (work.store(encoder, group) for group in groups)
        if current_engine().is_cluster:
            threads, run = torch.get_num_threads(), work.digest(config)
            if parts is not None:
                # Array files are named by cuts only: a run with another encoder, or other batches, overwrites them.
                names = json.dumps([[cut.id for cut in group] for group in groups])
                parts.keep_of(hashlib.sha256(f"{run} {names}".encode("utf-8", "surrogatepass")).hexdigest())
            shards = zip(map(partial(batch_digest, run, stored_features=False), groups), groups)
            start = partial(work.start, config, threads, run)
            arrays = map(_arrays_of, current_engine().run(start, shards, parts, threads, uses_gpu=True))
        elif jobs > 1:
            context = multiprocessing.get_context("spawn")  # CUDA cannot be used in forked processes
            places = context.Queue()
            for number in range(jobs):
                places.put(number)
            threads = max(1, torch.get_num_threads() // jobs)
            load = partial(_start_process, config, places, threads)
            pool = stack.enter_context(ProcessPoolExecutor(jobs, context, initializer=load))
            arrays = pool.map(work, groups)
        bar = stack.enter_context(tqdm(total=len(cuts), unit="cut", desc="features", disable=None))
        for stored, group in zip(arrays, groups):
            for cut, array in zip(group, stored):
                custom = {**(cut.custom or {}), key: array, ORIGIN: origin}
                done[cut.id] = dataclasses.replace(cut, custom=custom)
            bar.update(len(group))
    return CutSet.from_cuts(done[cut.id] for cut in cuts)


@dataclass(frozen=True)
class StoringJob:
    """Computes and stores the features of batches; sent to other processes. The fields are as in `store_features`."""

    storage_dir: str
    suffix: str
    """Suffix of the file names, by chunk setting."""
    dtype: str
    bf16: bool
    chunks: Optional[ChunkOptions]
    access: SourceAccess

    @torch.no_grad()
    def store(self, encoder: Encoder, group: Sequence[Cut]) -> List[Array]:
        """Store the features of a batch; return the arrays' manifests."""
        device = next(encoder.parameters()).device
        with allow_sources(self.access.commands, self.access.urls):
            audio, lens = collate([load_inputs(cut) for cut in group])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
            features, frames = encoder.extract(audio.to(device), lens, self.chunks)
        with NumpyFilesWriter(self.storage_dir) as writer:
            return [
                writer.store_array(
                    _file_key(cut.id) + self.suffix, np.ascontiguousarray(values[:length].astype(self.dtype))
                )
                for cut, values, length in zip(group, features.float().cpu().numpy(), frames.tolist())
            ]

    def digest(self, config: EncoderConfig) -> str:
        """A digest of everything that a cut's features depend on: the job, and the encoder with its files."""
        digest = hashlib.sha256(f"{tokenverse_pp.__version__} {self} {config}".encode())
        for path in sorted(Path(config.name).iterdir()) if Path(config.name).is_dir() else ():
            if path.is_file():
                digest.update(f"\n{path.name}\n".encode())
                feed(digest, path)
        return digest.hexdigest()

    def start(self, config: EncoderConfig, threads: int, run: str) -> Callable[[Sequence[Cut]], Dict[str, Any]]:
        """Load the encoder in a cluster worker; return a function from a batch to its result as plain JSON.

        Raises UserError if `digest` differs from ``run``, the digest of the command.
        """
        if self.digest(config) != run:
            raise UserError(f"{config.name}: on {socket.gethostname()} it differs from that of the command")
        encoder = _load_encoder(config, threads)
        return lambda group: {"arrays": [array.to_dict() for array in self.store(encoder, group)]}

    def __call__(self, group: Sequence[Cut]) -> List[Array]:
        """`store` in a process that `_start_process` has started."""
        return self.store(_encoder[0], group)


def _arrays_of(line: Dict[str, Any]) -> List[Array]:
    """The manifests of a batch that a cluster worker has stored (raises UserError if an array is not found here)."""
    arrays = [Array.from_dict(array) for array in line["arrays"]]
    check_shared(Path(array.storage_path, array.storage_key) for array in arrays)
    return arrays


_encoder: List[Encoder] = []  # of this process, if `store_features` has started it


def _start_process(config: EncoderConfig, places: Any, threads: int) -> None:
    """Start a process of `store_features`: load the encoder on a GPU, by its number from ``places``."""
    _encoder.append(_load_encoder(config, threads, places.get()))


def _load_encoder(config: EncoderConfig, threads: int, place: int = 0) -> Encoder:
    """Load the encoder in a separate process, on GPU ``place`` modulo the number of visible GPUs."""
    torch.set_num_threads(threads)
    encoder = build_encoder(config).eval()
    if torch.cuda.is_available():
        encoder = encoder.to(torch.device("cuda", place % torch.cuda.device_count()))
    return encoder


def batches_of(cuts: Iterable[Cut], max_duration: float) -> Iterator[List[Cut]]:
    """Batches of consecutive cuts: at most ``max_duration`` seconds with padding, or a single cut."""
    group: List[Cut] = []
    for cut in cuts:
        if group and (len(group) + 1) * max(cut.duration, max(c.duration for c in group)) > max_duration:
            yield group
            group = []
        group.append(cut)
    if group:
        yield group


def _file_key(cut_id: str) -> str:
    """A file name for a cut id: the id itself if it is one, else a cleaned form with a hash."""
    key = re.sub(r"[/\\]|" + CONTROL.pattern, "_", cut_id)[:LONGEST_NAME]
    return key if key == cut_id else f"{key}.{hashlib.sha256(cut_id.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
