#!/bin/sh
# Makes .venv with packages that are checked against their hashes:
#   sh scripts/install.sh        what runs: requirements.lock, and the project itself, editable
#   sh scripts/install.sh dev    what tests and develops beside it: requirements-dev.lock
#   sh scripts/install.sh uv     uv alone, which makes the lock files
# `make` runs it when a lock file or pyproject.toml has changed. PYTHON names the interpreter to use.
set -eu

FITS='import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
WHICH='import sys; print(sys.base_prefix, sys.version)'
VENV=.venv/bin/python

case ${1:-run} in
run) LOCK=requirements.lock ROOM=4 ;;
dev) LOCK=requirements-dev.lock ROOM=1 ;;
uv) LOCK=requirements-bootstrap.lock ROOM=1 ;;
*) echo "usage: sh scripts/install.sh [dev|uv]" >&2 && exit 2 ;;
esac

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

# An environment that an interpreter made which PYTHON does not name is made anew.
fits() {
    "$VENV" -c "$FITS" >/dev/null 2>&1 || return 1
    [ -z "${PYTHON:-}" ] || [ "$("$PYTHON" -c "$WHICH" 2>/dev/null)" = "$("$VENV" -c "$WHICH")" ]
}

install_uv() {
    "$VENV" -m pip install --quiet --only-binary :all: --require-hashes -r requirements-bootstrap.lock
}

# A lock file is complete, so neither way looks for what a package requires.
install_with_uv() {
    install_uv && .venv/bin/uv pip install --python "$VENV" --require-hashes --no-deps --compile-bytecode -r "$LOCK" || return 1
    [ "$LOCK" = requirements-dev.lock ] ||
        .venv/bin/uv pip install --python "$VENV" --quiet --no-deps --no-build-isolation -e .
}

# Takes minutes where uv takes seconds, but follows pip's own configuration (a company's mirror, its certificates).
install_with_pip() {
    "$VENV" -m pip install --require-hashes --no-deps -r "$LOCK" || return 1
    [ "$LOCK" = requirements-dev.lock ] || "$VENV" -m pip install --quiet --no-deps -e .
}

if ! fits; then
    python=$(find_python)
    [ -n "$python" ] || fail "${PYTHON:+$PYTHON is no usable interpreter. }Perennial needs Python 3.11, 3.12 or 3.13 with its" \
        "venv module. Install one (Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.13)" \
        "or name it: make PYTHON=/path/to/python3.12"
    echo "Making .venv with $("$python" -c 'import sys; print(sys.executable, sys.version.split()[0])')"
    "$python" -m venv --clear .venv || fail "$python could not make .venv, see above."
fi
"$VENV" -c "import shutil, sys; sys.exit(shutil.disk_usage('.').free < $ROOM * 10**9)" ||
    fail "The disk of $(pwd) has less than $ROOM GB left, which the packages need. Make room and run make again."
echo "Installing the packages of $LOCK"
if [ "$LOCK" = requirements-bootstrap.lock ]; then
    install_uv
else
    install_with_uv || { echo "uv did not manage it; trying pip, which takes longer" >&2 && install_with_pip; }
fi || fail "The packages could not be installed, see above. Check the network and the disk, then run make again."
