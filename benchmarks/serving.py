"""A streaming server under load, with clients beside it that misbehave.

    python benchmarks/serving.py --streams 50 --minutes 10 --json FILE
    python benchmarks/serving.py --streams 4 --uploads 8 --minutes 10 --json FILE
    python benchmarks/serving.py --quick

starts `tokenverse-pp serve` in a process of its own, and plays a different utterance, again and again, into each of
--streams streams at the speed of speech. All the while other clients read nothing, drop their connection, send garbage,
or messages that are too long; what they are told is counted. --uploads clients upload utterance after utterance
(/v1/audio/transcriptions); one upload in twenty is no audio. Printed as JSON:

    streams, minutes          what was played
    audio_minutes, real_time  heard in all; whether sending kept the speed of speech (1: yes, 2: took twice as long)
    rss_mb                    of the server: start (after a tenth of the time), end, most
    events, latency_ms        events heard; from the moment at which the last sample that an event rests on was sent:
                              median, p99, most
    ended                     streams that were heard to their end
    same_as_alone, mixed_up   streams whose first half minute reads as when it is the only stream; as another stream's
    errors                    what misbehaving clients were told, by code
    uploads                   answers by status; seconds of audio a second; seconds until the answer: median, p99, most;
                              those whose text is that of the utterance alone, and of another one
    server                    /health at the end

The streams' utterances are the longest of --cuts.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional

import aiohttp
import numpy as np
import soundfile
from kaldialign import edit_distance

from tokenverse_pp.base.files import write_json
from tokenverse_pp.serving.client import ServerError, StreamClient
from tokenverse_pp.serving.protocol import SAMPLE_RATE, Start, start_message

ROOT = Path(__file__).resolve().parent.parent
PIECE = SAMPLE_RATE // 5  # samples in a message
ALONE_SECONDS = 30.0  # of each stream that are compared with the stream alone
OVERSIZED = 1 << 19


@dataclass
class Played:
    """What one stream heard and said."""

    name: int
    audio: np.ndarray
    sent: List[float] = field(default_factory=list)  # when each piece was
    latencies: List[float] = field(default_factory=list)
    events: int = 0
    text: Optional[str] = None
    early: List[str] = field(default_factory=list)  # said about the first `ALONE_SECONDS`

    def hear(self, event: dict) -> None:
        """Take note of an event."""
        self.events += 1
        if event["kind"] == "end":
            self.text = event["text"]
            return
        piece = min(len(self.sent), max(1, int(np.ceil(event["time"] * SAMPLE_RATE / PIECE - 1e-6)))) - 1
        self.latencies.append(time.monotonic() - self.sent[piece])
        if event["kind"] != "partial" and event["words"][0]["start"] <= ALONE_SECONDS - 5:
            self.early.append(event["text"])


async def play(url: str, played: Played, seconds: float, speed: float) -> None:
    """One stream from its start to its end; the audio is played again and again."""
    async with StreamClient(url) as stream:
        sending = asyncio.ensure_future(send(stream, played, seconds, speed))
        async for event in stream:
            played.hear(event)
        await sending


async def send(stream: StreamClient, played: Played, seconds: float, speed: float) -> None:
    """Send the audio at ``speed`` times that of speech (0: as fast as it goes)."""
    began = time.monotonic()
    for number in range(int(seconds * SAMPLE_RATE / PIECE)):
        await stream.send(np.take(played.audio, np.arange(number * PIECE, (number + 1) * PIECE), mode="wrap"))
        played.sent.append(time.monotonic())
        if speed:
            await asyncio.sleep(max(0.0, began + (number + 1) * PIECE / SAMPLE_RATE / speed - time.monotonic()))
    await stream.end()


async def misbehave(url: str, kind: str, errors: Counter, audio: np.ndarray, until: float) -> None:
    """Again and again a client that does one thing wrong; what it is told is counted."""
    rng = random.Random(kind)
    while time.monotonic() < until:
        try:
            async with StreamClient(url) as stream:
                if kind == "slow":  # reads nothing before the end of the benchmark
                    while time.monotonic() < until:
                        await asyncio.wait_for(stream.send(audio[:PIECE]), 5)
                        await asyncio.sleep(PIECE / SAMPLE_RATE)
                elif kind == "garbage":
                    garbage = rng.choice([rng.randbytes(999), "{", '{"kind": "x"}', '{"kind": "start"}'])
                    await stream._say(garbage)
                elif kind == "oversized":
                    await stream._say(bytes(OVERSIZED))
                elif kind == "drop":
                    await stream.send(audio[: PIECE * rng.randrange(1, 20)])
                    stream._connection.transport.abort()
                    errors["dropped"] += 1
                    await asyncio.sleep(0.5)
                    continue
                await stream.end()
                async for _ in stream:
                    pass
                errors[f"none ({kind})"] += 1
        except (ServerError, asyncio.TimeoutError) as error:
            errors[getattr(error, "code", "held back")] += 1
        await asyncio.sleep(0.5)


async def early_gone(url: str, errors: Counter, until: float) -> None:
    """Connections that break in the middle of a frame."""
    host, port = url.split("/")[2].split(":")
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection(host, int(port))
        head = "GET /stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(f"{head}Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\x81\xfe" + start_message(Start()).encode()[:20] + os.urandom(200))
        await writer.drain()
        writer.transport.abort()
        errors["broken frame"] += 1
        await asyncio.sleep(0.5)


@dataclass
class Uploaded:
    """What the uploads of all clients came to; ``alone``: the text of each utterance, uploaded alone."""

    files: List[bytes]
    seconds: List[float]
    alone: List[str] = field(default_factory=list)
    status: Counter = field(default_factory=Counter)
    latencies: List[float] = field(default_factory=list)
    heard: float = 0.0
    same: int = 0
    mixed_up: int = 0

    def summary(self, took: float) -> Dict[str, object]:
        """For the JSON."""
        times = np.array(self.latencies or [0.0])
        return {
            "status": dict(self.status),
            "audio_seconds_a_second": round(self.heard / took, 2),
            "seconds": {
                "median": round(float(np.median(times)), 2),
                "p99": round(float(np.percentile(times, 99)), 2),
                "most": round(float(times.max()), 2),
            },
            "same_as_alone": self.same,
            "mixed_up": self.mixed_up,
        }


async def upload(url: str, client: aiohttp.ClientSession, content: bytes) -> aiohttp.ClientResponse:
    """The answer to one file, read whole."""
    data = aiohttp.FormData({"model": "whisper-1"})
    data.add_field("file", content, filename="a.wav", content_type="audio/wav")
    address = url.replace("ws:", "http:").replace("/stream", "/v1/audio/transcriptions")
    async with client.post(address, data=data, timeout=aiohttp.ClientTimeout(600)) as answer:
        await answer.read()
        return answer


async def upload_all(url: str, name: int, found: Uploaded, until: float) -> None:
    """Upload an utterance after the other; what is refused for a while comes again."""
    rng = random.Random(name)
    async with aiohttp.ClientSession() as client:
        while time.monotonic() < until:
            number = rng.randrange(len(found.files))
            is_bad = rng.random() < 0.05
            began = time.monotonic()
            answer = await upload(url, client, rng.randbytes(20000) if is_bad else found.files[number])
            found.status[f"{answer.status}{' (no audio)' if is_bad else ''}"] += 1
            if answer.status == 429:
                await asyncio.sleep(int(answer.headers["Retry-After"]))
            elif answer.status == 200:
                found.latencies.append(time.monotonic() - began)
                found.heard += found.seconds[number]
                text = (await answer.json())["text"]
                found.same += text == found.alone[number]
                found.mixed_up += nearest(text.split(), {i: x.split() for i, x in enumerate(found.alone)}) != number


async def upload_alone(url: str, audio: List[np.ndarray]) -> Uploaded:
    """The utterances as files, and the text of each."""
    found = Uploaded([], [len(samples) / SAMPLE_RATE for samples in audio])
    async with aiohttp.ClientSession() as client:
        for samples in audio:
            memory = io.BytesIO()
            soundfile.write(memory, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
            found.files.append(memory.getvalue())
            found.alone.append((await (await upload(url, client, found.files[-1])).json())["text"])
    return found


def rss_mb(process: int) -> float:
    """Memory of a process that is in RAM."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def watch(process: int, found: List[float], until: float) -> None:
    """Measure the server's memory each second."""
    while time.monotonic() < until:
        found.append(rss_mb(process))
        await asyncio.sleep(1)


async def load(url: str, process: int, audio: List[np.ndarray], args: argparse.Namespace) -> Dict[str, object]:
    """The whole benchmark."""
    alone: Dict[int, List[str]] = {}
    for name in range(min(args.compared, args.streams)):
        single = Played(name, audio[name])
        await play(url, single, min(ALONE_SECONDS, args.minutes * 60), 0)
        alone[name] = single.early
    uploaded = await upload_alone(url, audio[: max(args.compared, 2)] if args.uploads else [])
    streams = [Played(name, samples) for name, samples in enumerate(audio[: args.streams])]
    errors: Counter = Counter()
    memory: List[float] = []
    began = time.monotonic()
    until = began + args.minutes * 60
    others = [misbehave(url, kind, errors, audio[0], until) for kind in ("slow", "garbage", "oversized", "drop")]
    await asyncio.gather(
        *(play(url, played, args.minutes * 60, args.speed) for played in streams),
        *others,
        *(upload_all(url, name, uploaded, until) for name in range(args.uploads)),
        early_gone(url, errors, until),
        watch(process, memory, until),
    )
    took = max(played.sent[-1] for played in streams) - began
    latencies = np.array(list(itertools.chain.from_iterable(played.latencies for played in streams))) * 1000
    start = memory[len(memory) // 10 : len(memory) // 5] or memory
    with urllib.request.urlopen(url.replace("ws:", "http:").replace("/stream", "/health")) as answer:
        health = json.load(answer)
    return {
        "streams": args.streams,
        "minutes": args.minutes,
        "audio_minutes": round(args.streams * args.minutes, 2),
        "real_time": round(took / (args.minutes * 60), 3),
        "rss_mb": {"start": round(max(start), 1), "end": round(memory[-1], 1), "most": round(max(memory), 1)},
        "events": sum(played.events for played in streams),
        "latency_ms": {
            "median": round(float(np.median(latencies)), 1),
            "p99": round(float(np.percentile(latencies, 99)), 1),
            "most": round(float(latencies.max()), 1),
        },
        "ended": sum(played.text is not None for played in streams),
        "compared": len(alone),
        "same_as_alone": sum(alone[name] == streams[name].early for name in alone),
        "mixed_up": sum(nearest(streams[name].early, alone) != name for name in alone),
        "errors": dict(errors),
        **({"uploads": uploaded.summary(time.monotonic() - began)} if args.uploads else {}),
        "server": health,
    }


def nearest(text: List[str], alone: Dict[int, List[str]]) -> int:
    """The stream whose text alone this is most like."""
    said = " ".join(text).split()
    return min(alone, key=lambda name: edit_distance(" ".join(alone[name]).split(), said)["total"])


def utterances(cuts: Path, count: int) -> List[np.ndarray]:
    """Audio of the longest utterances."""
    from tokenverse_pp.data.dataset import load_inputs
    from tokenverse_pp.data.manifests import read_cuts

    chosen = sorted(read_cuts(cuts), key=lambda cut: -cut.duration)[:count]
    if len(chosen) < count:
        sys.exit(f"{cuts}: {len(chosen)} utterances for {count} streams")
    return [load_inputs(cut, convert=True).numpy() for cut in chosen]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="human-speech")
    parser.add_argument("--encoder", default="data/whisper-base")
    parser.add_argument("--cuts", type=Path, default=Path("data/human_speech_v2/cuts_test.jsonl.gz"))
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--uploads", type=int, default=0, help="clients that upload files beside the streams")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--speed", type=float, default=1.0, help="times that of speech; 0: as fast as it goes")
    parser.add_argument("--compared", type=int, default=20, help="streams that are also run alone")
    parser.add_argument("--server", default="", help="more options of `tokenverse-pp serve`")
    parser.add_argument("--quick", action="store_true", help="3 streams for 12 seconds")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.streams, args.uploads, args.minutes, args.compared = 3, 2, 0.2, 2
    audio = utterances(args.cuts, max(args.streams, args.compared if args.uploads else 0))
    options = f"--encoder {args.encoder} --port 0 --max-streams {args.streams + 8} {args.server}".split()
    command = [sys.executable, "-m", "tokenverse_pp.cli.main", "serve", "--model", args.model, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    try:
        said = ""
        while "streams: " not in said:
            said = process.stderr.readline()
            if not said:
                sys.exit("the server did not start")
            print(said, end="", file=sys.stderr)
        url = said.split("streams: ")[1].strip()
        # A pipe that nobody reads would stop the server.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        found = asyncio.run(load(url, process.pid, audio, args))
        process.send_signal(signal.SIGTERM)
        found["exit_code"] = process.wait(60)
    finally:
        process.kill()
    print(json.dumps(found, indent=2))
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    main()
