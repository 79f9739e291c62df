#!/usr/bin/env bash
# Build fast_rnnt 1.3, the standalone twin of k2's loss and the fair peer of benchmarks/loss.py, from PyPI for the torch
# of an environment (about a minute; needs cmake and a C++ compiler). Its build wants to download pybind11 by itself and
# chooses flags that today's torch refuses, hence the arguments.
#
#   .ci/build_peers.sh [.venv/bin/python]        PEERS_DIR: where it goes (default: .cache/peers in the checkout)
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-$root/.venv/bin/python}
target=${PEERS_DIR:-$root/.cache/peers}

for tool in cmake c++; do
  if ! command -v "$tool" >/dev/null; then
    echo "build_peers.sh: $tool not found; install it (Debian: cmake, g++)" >&2
    exit 2
  fi
done
if "$python" -c "import sys; sys.path.insert(0, '$target'); import torch, fast_rnnt" 2>/dev/null; then
  echo "fast_rnnt is in $target"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download --quiet --disable-pip-version-check --no-binary :all: --no-deps -d "$work" 'pybind11>=3,<4'
mkdir "$work/pybind11"
tar -xf "$work"/pybind11-*.tar.gz -C "$work/pybind11" --strip-components=1
mkdir -p "$(dirname "$target")"
FT_CMAKE_ARGS="-DFT_BUILD_TESTS=OFF -DFT_WITH_CUDA=OFF -DCMAKE_CXX_STANDARD=17 -DPYBIND11_FINDPYTHON=OFF \
  -DFETCHCONTENT_SOURCE_DIR_PYBIND11=$work/pybind11" \
  PATH="$(dirname "$python"):$PATH" "$python" -m pip install --quiet --disable-pip-version-check \
  --no-build-isolation --no-deps --upgrade --target "$target" fast_rnnt==1.3
"$python" -c "import sys; sys.path.insert(0, '$target'); import torch, fast_rnnt"
echo "fast_rnnt is in $target"
