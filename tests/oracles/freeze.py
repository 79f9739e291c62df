"""Write the expected values of the oracle tests anew: only where a change of results is intended and in CHANGELOG.md.

python tests/oracles/freeze.py [NAME ..]      # names: see ORACLES; all without any
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "oracles"), str(TESTS), str(TESTS / "data"), str(TESTS / "data" / "corpora")]

import oracles  # noqa: E402

ORACLES = {
    **{f"decode_{name}": lambda corpus, work, n=name: oracles.decoded(corpus, work, n) for name in oracles.DECODINGS},
    "decode_packaged": lambda corpus, work: oracles.packaged(corpus, work),
    "train": lambda corpus, work: oracles.trained(corpus, work),
    "stream": lambda corpus, work: oracles.streamed(corpus),
    "import": lambda corpus, work: oracles.imported(work),
    "corpora": lambda corpus, work: oracles.corpora(work),
    "onnx": lambda corpus, work: oracles.exported(corpus, work),
}


def main(names: list) -> None:
    """Freeze these oracles."""
    oracles.EXPECTED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        corpus = oracles.make_corpus(Path(folder) / "toy")
        for name in names or ORACLES:
            work = Path(folder) / name
            work.mkdir()
            data = json.dumps(ORACLES[name](corpus, work), ensure_ascii=False, sort_keys=True).encode()
            (oracles.EXPECTED / f"{name}.json.gz").write_bytes(gzip.compress(data, mtime=0))
            print(name, len(data))


if __name__ == "__main__":
    main(sys.argv[1:])
