#!/usr/bin/env bash
# Make the environment with the real k2 that the k2 tests run in: Python 3.9, torch 1.13.1, k2 1.23.4 (about 3.5 GB,
# one to two minutes; kept between runs). Prints the path of its interpreter as the last line.
#
#   .ci/k2_env.sh [--required] [--test [pytest arguments]]
#
# --test runs pytest in it from the checkout's root, by default over tests/losses.
# K2ENV_DIR: where it goes (default: .cache/k2env in the checkout). PYTHON39: the interpreter (default: python3.9,
# or pyenv's 3.9). Without a Python 3.9 it says so, prints no path and runs no test: exit code 0, with --required 2.
set -euo pipefail

required=no test=no
while [[ ${1:-} == --* ]]; do
  case $1 in
    --required) required=yes ;;
    --test) test=yes ;;
    *) echo "k2_env.sh: unknown option $1 (expected --required or --test)" >&2; exit 2 ;;
  esac
  shift
done

root=$(cd "$(dirname "$0")/.." && pwd)
target=${K2ENV_DIR:-$root/.cache/k2env}
packages=(
  k2==1.23.4 torch==1.13.1 numpy==1.26.4 lhotse==1.33.0 sentencepiece==0.2.2 transformers==4.40.2
  urllib3 six kaldialign safetensors jsonargparse[signatures] pyyaml click langcodes regex tqdm soundfile tensorboard jinja2 hypothesis pytest
)
stamp="$target/.packages"
wanted="${packages[*]}"

find_python() {
  local candidate
  for candidate in "${PYTHON39:-}" python3.9 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.9.*/bin/python3.9; do
    # A pyenv shim exists without its interpreter, so ask it.
    if [[ -n $candidate ]] && "$candidate" -c 'import sys; assert sys.version_info[:2] == (3, 9)' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

if [[ ! -f $stamp || $(cat "$stamp") != "$wanted" ]]; then
  python=$(find_python)
  if [[ -z $python ]]; then
    echo "k2 tests skipped: no python3.9 found (k2 1.23.4 has wheels for it only; set PYTHON39 to one)" >&2
    if [[ $required == yes ]]; then exit 2; fi
    exit 0
  fi
  echo "making $target (about 3.5 GB) with $("$python" --version)" >&2
  rm -rf "$target"
  mkdir -p "$(dirname "$target")"
  "$python" -m venv "$target"
  "$target/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}" >&2
  "$target/bin/python" -c 'import k2, torch' >&2
  echo "$wanted" >"$stamp"
fi
if [[ $test == yes ]]; then
  cd "$root"
  "$target/bin/python" -m pytest "${@:-tests/losses}"
fi
echo "$target/bin/python"
