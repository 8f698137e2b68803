#!/bin/sh
# Looks for known vulnerabilities of all packages in requirements.lock, and writes sbom.json: these packages, as CycloneDX.
#   sh scripts/audit.sh           fails where one is vulnerable, or where the database of vulnerabilities cannot be reached
#   sh scripts/audit.sh --try     where the database cannot be reached, says so and does not fail
# A package that the database does not know fails too: it was not scanned. `make audit` and .ci/run call it. A vulnerability without a repair is left out by its id in IGNORED, with the reason.
set -eu

IGNORED=""

scan() {
    # shellcheck disable=SC2086
    .venv/bin/pip-audit --strict --requirement requirements.lock --disable-pip --require-hashes --progress-spinner off $IGNORED "$@"
}

if [ "${1:-}" = --try ]; then
    # The addresses that pip-audit asks: PyPI's own record of each package.
    .venv/bin/python -c 'import urllib.request; urllib.request.urlopen("https://pypi.org/pypi/pip/json", timeout=10).close()' \
        2>/dev/null || {
        echo "the packages were not scanned: the database of vulnerabilities (pypi.org) cannot be reached from here" >&2
        exit 0
    }
fi
scan --format cyclonedx-json --output sbom.json
