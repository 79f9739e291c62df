"""How long training waits for data that is in object storage: an S3 server on loopback (moto), nothing cached before.

    OMP_NUM_THREADS=1 python benchmarks/object_storage.py --json object_storage.json

One JSON record a line. ``appetite``: shards are read for a machine that consumes 20,000 s of audio a second (8 GPUs);
their tar files hold as many bytes as Opus at 24 kbit/s, which are read and not decoded. A step consumes 0.1 s' worth,
and the next batch is drawn meanwhile, as it is while a GPU computes; ``wait`` is the share of the time in which the
next batch was not there, ``wait_for_objects`` the part of it in which the reader waited for an object, and not for a
core. ``toy``: recipes/toy is trained, with a process that loads audio (the default); ``wait`` is the mean of
``data_wait`` in its log. Each is measured with the same shards on disk, too. ``--latency`` is added to each request:
seconds that a real store takes to answer.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import numpy as np
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.array import Array
from lhotse.shar import ArrayTarWriter, JsonlShardWriter

from tokenverse_pp.base import storage
from tokenverse_pp.data.samplers import open_source
from tokenverse_pp.training.log import read_log

ROOT = Path(__file__).resolve().parent.parent
APPETITE = 20_000.0  # seconds of audio a second
STEP = 0.1  # seconds
CUT = 15.0  # seconds of audio
BYTES = int(CUT * 24_000 / 8)
BUCKET = "s3://benchmark"


def serve(latency: float, port: Any) -> None:
    """The server, in a process of its own."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    app = DomainDispatcherApplication(create_backend_app)

    def slowly(environ: Any, start_response: Any) -> Any:
        time.sleep(latency)
        return app(environ, start_response)

    WSGIRequestHandler.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    server = make_server("127.0.0.1", 0, slowly, threaded=True)
    port.send(server.server_port)
    server.serve_forever()


def write_shards(folder: Path, shards: int, size: int) -> None:
    """Shards of cuts with a payload."""
    rng = np.random.default_rng(1)
    payload = rng.integers(0, 256, BYTES, dtype=np.uint8)
    folder.mkdir()
    names = [str(folder / name) for name in ("cuts.%06d.jsonl.gz", "payload.%06d.tar")]
    manifest = Array("shar", "", "", [BYTES])
    with JsonlShardWriter(names[0], size) as cuts, ArrayTarWriter(names[1], size, compression="numpy") as arrays:
        for number in range(shards * size):
            recording = Recording(f"r{number}", [], 16000, int(CUT * 16000), CUT)
            turn = SupervisionSegment(f"s{number}", f"r{number}", 0.0, CUT, text="words " * 40, language="en")
            cuts.write(MonoCut(f"c{number}", 0.0, CUT, 0, [turn], recording=recording, custom={"tasks": ["asr"]}))
            arrays.write(f"c{number}", payload, manifest)


def appetite(path: str) -> Dict[str, float]:
    """Read all shards at the pace of `APPETITE`."""
    blocked = 0.0
    real = storage.open_cached

    def timed(url: str) -> Any:
        nonlocal blocked
        start = time.perf_counter()
        try:
            return real(url)
        finally:
            if threading.current_thread() is threading.main_thread():  # and not one that reads ahead
                blocked += time.perf_counter() - start

    storage.open_cached = timed  # type: ignore[assignment]
    wait = wait_for_objects = 0.0
    drawn, rates = 0, []
    source = open_source(path)
    cuts: Iterator[Any] = source.open_at(0)
    next(cuts)
    start = time.perf_counter()
    while drawn + 1 < source.count:
        blocked, begin = 0.0, time.perf_counter()
        for _ in zip(range(int(APPETITE * STEP / CUT)), cuts):
            drawn += 1
        took = time.perf_counter() - begin
        rates.append(took)
        wait += max(0.0, took - STEP)
        wait_for_objects += min(max(0.0, took - STEP), blocked)
        time.sleep(max(0.0, STEP - took))
    storage.open_cached = real
    seconds = time.perf_counter() - start
    return {
        "wait": round(wait / seconds, 4),
        "wait_for_objects": round(wait_for_objects / seconds, 4),
        "audio_seconds_a_second": round(drawn * CUT / seconds),
        "draw_seconds_a_step": round(sorted(rates)[len(rates) // 2], 4),
        "steps": len(rates),
    }


def toy(train: str, corpus: Path, exp_dir: str, log: Path, steps: int) -> Dict[str, float]:
    """Train recipes/toy on shards."""
    words = ["--config", str(ROOT / "recipes/toy/conf/toy.yaml"), "--data.train", f"[{train}]", "--data.valid", "[]"]
    words += ["--data.num_workers", "1", "--model.encoder.name", f"{corpus}/encoder", "--training.exp_dir", exp_dir]
    words += ["--training.max_steps", str(steps), "--training.log_every", "5", "--training.save_every", "20"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(ROOT / "recipes/train.py"), *words], check=True, env=environment)
    if storage.url_of(exp_dir):
        log.write_bytes(storage.read_bytes(f"{exp_dir}/log.jsonl"))
    records = [record for record in read_log(log) if record["kind"] == "train"]
    return {
        "wait": round(sum(record["data_wait"] for record in records) / len(records), 4),
        "speed": round(sum(record["speed"] for record in records) / len(records), 1),
        "loss": records[-1]["pruned"],
        "steps": records[-1]["step"],
    }


def run(args: argparse.Namespace, folder: Path) -> Iterator[Dict[str, Any]]:
    """All measurements."""
    import fsspec

    fsspec.filesystem("s3").mkdir(BUCKET)
    if "appetite" in args.parts:
        yield from run_appetite(args, folder)
    if "toy" in args.parts:
        yield from run_toy(args, folder)


def run_appetite(args: argparse.Namespace, folder: Path) -> Iterator[Dict[str, Any]]:
    """From disk, from the store, and from the cache that this has left."""
    write_shards(folder / "shards", args.shards, args.shard_size)
    size = sum(path.stat().st_size for path in (folder / "shards").iterdir()) / 1e6
    for path in sorted((folder / "shards").iterdir()):
        storage.upload(path, f"{BUCKET}/shards/{path.name}")
    for kind, place in (("disk", str(folder / "shards")), ("s3", f"{BUCKET}/shards"), ("cached", f"{BUCKET}/shards")):
        yield {"what": "appetite", "where": kind, "megabytes": round(size), **appetite(place)}


def run_toy(args: argparse.Namespace, folder: Path) -> Iterator[Dict[str, Any]]:
    """From disk and from the store, to which the checkpoints go, too."""
    corpus = folder / "toy"
    prepare = [sys.executable, str(ROOT / "recipes/toy/prepare.py"), "--output-dir", str(corpus)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*prepare, "--train", "400", "--dev", "4", "--test", "4"], check=True, env=environment)
    to_shar = [sys.executable, "-m", "tokenverse_pp.cli.main", "manifest", "to-shar"]
    for kind, place, exp_dir in (
        ("disk", str(folder / "toy-shar"), str(folder / "exp")),
        ("s3", f"{BUCKET}/toy-shar", f"{BUCKET}/exp"),
    ):
        words = [str(corpus / "cuts_train.jsonl.gz"), place, "--shard-size", "50"]
        subprocess.run([*to_shar, *words], check=True, env=environment)
        log = folder / ("exp" if kind == "disk" else "fetched") / "log.jsonl"
        log.parent.mkdir(exist_ok=True)
        yield {"what": "toy", "where": kind, **toy(place, corpus, exp_dir, log, args.steps)}


def main() -> None:
    """Start the server, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["appetite", "toy"], choices=["appetite", "toy"])
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--shard-size", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100, help="of the toy")
    parser.add_argument("--latency", type=float, default=0.03)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    mine, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(args.latency, theirs), daemon=True)
    server.start()
    records: List[str] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{mine.recv()}",
            AWS_ACCESS_KEY_ID="testing",
            AWS_SECRET_ACCESS_KEY="testing",
            AWS_DEFAULT_REGION="us-east-1",
            TOKENVERSE_PP_CACHE=f"{folder}/cache",
        )
        for record in run(args, Path(folder)):
            records.append(json.dumps({**record, "latency": args.latency}))
            print(records[-1], flush=True)
    server.kill()
    if args.json:
        args.json.write_text("\n".join(records) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
