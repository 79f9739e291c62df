#!/bin/sh
# Make (or complete) the virtual environment of the project: .ci/venv.sh [FOLDER]
#   PYTHON   the interpreter to use; by default the newest python3.x on the PATH that is 3.9 or newer
#   TORCH_INDEX   URL of the package index that torch comes from (default: that of pip). PyTorch names its indexes on its page;
#                 the one for CPU saves 6 GB
# Debian and Ubuntu split venv off python3: as root this installs what is missing, otherwise it says what to install.
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv}

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 9))' >/dev/null 2>&1; }

find_python() {
    # 3.11 to 3.13 first: the pins of requirements.txt are tested there.
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python3.10 python3.9}; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

need_packages() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing $*" >&2
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
    else
        echo "error: missing Debian packages; run: apt-get install $*" >&2
        exit 2
    fi
}

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    if [ -z "$python" ]; then
        if [ -n "${PYTHON:-}" ]; then
            echo "error: PYTHON=$PYTHON: expected an interpreter of Python 3.9 or newer" >&2
            exit 2
        fi
        need_packages python3 python3-venv
        python=python3
    fi
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        need_packages "python$version-venv"
    fi
    "$python" -m venv "$venv"
fi

# One line a package, as it is fetched; errors and warnings as they are. (sh has no pipefail: the status goes by a file.)
pip() {
    failed=$(mktemp)
    { "$venv/bin/python" -m pip --disable-pip-version-check "$@" || echo "$?" >"$failed"; } |
        sed -n 's/^Collecting \([^ ]*\).*/  \1/p; /^Installing collected/s/:.*/ .../p; /^Building wheel/p'
    code=$(cat "$failed")
    rm -f "$failed"
    return "${code:-0}"
}
export PIP_PROGRESS_BAR=off PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
echo "installing the packages of requirements.txt in $venv: 1 to 4 minutes, 4.0 GB" >&2
pip install --upgrade pip

install_torch() {
    echo "installing torch $1${TORCH_INDEX:+ from $TORCH_INDEX}" >&2
    pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$1"
}

# meeteval, of the extra scoreboards, has no wheels. Where it cannot be compiled all else works, and its tests are skipped.
install_scoreboards() {
    version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    headers=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    if ! command -v g++ >/dev/null || [ ! -f "$headers/Python.h" ]; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            need_packages g++ "python$version-dev"
        fi
    fi
    pip install "$@" || echo "meeteval (cpWER) is left out: compiling it takes g++ and python$version-dev" >&2
}

if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    install_torch "$(sed -n 's/^torch==//p' requirements.txt)"
    echo "installing the other packages" >&2
    wanted=$(mktemp)
    grep -v '^meeteval==' requirements.txt >"$wanted"
    pip install -r "$wanted"
    rm -f "$wanted"
    pip install --no-deps --editable .
    install_scoreboards "$(grep '^meeteval==' requirements.txt)" || true
else
    echo "Python older than 3.11: the ranges of pyproject.toml in place of the tested pins" >&2
    torch=$("$venv/bin/python" -c 'import sys; print("2.13.0" if sys.version_info >= (3, 10) else "2.8.0")')
    install_torch "$torch"
    echo "installing the other packages" >&2
    pip install "torch==$torch" --editable '.[human-speech,plots,storage,dev]'
    # One by one: packages that have no release for this Python cost only their extra.
    for extra in media lora serve onnx sherpa words entities datasets ray docs; do
        pip install "torch==$torch" --editable ".[$extra]" || echo "the extra $extra is left out: see above" >&2
    done
    install_scoreboards "torch==$torch" --editable '.[scoreboards]' || true
fi
