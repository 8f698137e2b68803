#!/bin/sh
# Makes the lock files from pyproject.toml: requirements.lock pins what runs, requirements-dev.lock what tests and develops beside it.
#   sh scripts/lock.sh                  keeps each pin that pyproject.toml still allows
#   sh scripts/lock.sh all              takes the newest version of everything
#   sh scripts/lock.sh mlflow duckdb    takes the newest version of these
#   sh scripts/lock.sh --check          writes nothing; fails where the files are not what it would write
# `make lock`, `make lock UPGRADE=...` and `make lock-check` call it. It needs uv alone, from requirements-bootstrap.lock.
set -eu

# One resolution for all Pythons from 3.11 on and all platforms. No header and no notes, so that no path or address gets in.
compile() {
    .venv/bin/uv pip compile --quiet --python .venv/bin/python --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate "$@"
}

# The second file is held to the pins of the first, so that both can be installed into one environment.
lock() {
    folder=$1
    shift
    compile "$@" --extra deploy --extra demo --output-file "$folder/requirements.lock" pyproject.toml &&
        compile "$@" --group dev --constraints "$folder/requirements.lock" --output-file "$folder/requirements-dev.lock"
}

check() {
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    cp requirements.lock requirements-dev.lock "$copy"
    # What uv has in its cache is enough as a rule.
    if ! lock "$copy" --offline 2>/dev/null; then
        cp requirements.lock requirements-dev.lock "$copy"
        lock "$copy"
    fi
    for file in requirements.lock requirements-dev.lock; do
        cmp -s "$file" "$copy/$file" || {
            diff "$file" "$copy/$file" | grep '^[<>] [a-z]' >&2 || true
            echo "$file is not what pyproject.toml asks for: run make lock and commit both files" >&2
            exit 1
        }
    done
}

if [ "${1:-}" = --check ]; then
    check
    exit
fi
if [ "${1:-}" = all ]; then
    set -- --upgrade
else
    count=$#
    while [ "$count" -gt 0 ]; do
        set -- "$@" --upgrade-package "$1"
        shift
        count=$((count - 1))
    done
fi
lock . "$@"
