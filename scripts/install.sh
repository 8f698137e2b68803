#!/bin/sh
# Makes .venv: the packages of requirements.lock, checked against their hashes, and the project itself, editable.
# `make` runs it when a lock file or pyproject.toml has changed. PYTHON names the interpreter to use.
set -eu

FITS='import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
ROOM='import shutil, sys; sys.exit(shutil.disk_usage(".").free < 4_000_000_000)'
VENV=.venv/bin/python

fail() {
    echo "$*" >&2
    exit 1
}

# A name on the path may be a shim without an interpreter behind it, so each is tried.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.13 python3.12 python3.11 python3 python
    fi
    for candidate; do
        if "$candidate" -c "$FITS" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
}

install_with_uv() {
    "$VENV" -m pip install --quiet --only-binary :all: --require-hashes -r requirements-bootstrap.lock &&
        .venv/bin/uv pip install --python "$VENV" --require-hashes --compile-bytecode -r requirements.lock &&
        .venv/bin/uv pip install --python "$VENV" --quiet --no-deps --no-build-isolation -e .
}

# Takes minutes where uv takes seconds, but follows pip's own configuration (a company's mirror, its certificates).
install_with_pip() {
    "$VENV" -m pip install --require-hashes -r requirements.lock && "$VENV" -m pip install --quiet --no-deps -e .
}

if [ -n "${PYTHON:-}" ] || ! "$VENV" -c "$FITS" >/dev/null 2>&1; then
    python=$(find_python)
    [ -n "$python" ] || fail "${PYTHON:+$PYTHON is no usable interpreter. }Perennial needs Python 3.11, 3.12 or 3.13 with its" \
        "venv module. Install one (Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.13)" \
        "or name it: make PYTHON=/path/to/python3.12"
    echo "Making .venv with $("$python" -c 'import sys; print(sys.executable, sys.version.split()[0])')"
    "$python" -m venv --clear .venv || fail "$python could not make .venv, see above."
fi
"$VENV" -c "$ROOM" || fail "The disk of $(pwd) has less than 4 GB left, which the packages need. Make room and run make again."
echo "Installing the packages of requirements.lock"
install_with_uv || { echo "uv did not manage it; trying pip, which takes longer" >&2 && install_with_pip; } ||
    fail "The packages could not be installed, see above. Look after the network and the disk, then run make again."
