#!/bin/sh
# Looks for known vulnerabilities of all packages in requirements.lock, and writes sbom.json: these packages, as CycloneDX.
#   sh scripts/audit.sh           fails where one is vulnerable, and where the database does not know one or cannot be reached
#   sh scripts/audit.sh --try     fails where one is vulnerable; where the database does not answer, says that nothing was scanned
# `make audit` and .ci/run call it.
set -eu

said=$(mktemp)
trap 'rm -f "$said"' EXIT
if .venv/bin/pip-audit --strict --requirement requirements.lock --disable-pip --require-hashes --progress-spinner off \
    --format cyclonedx-json --output sbom.json 2>"$said"; then
    cat "$said" >&2
    exit
fi
cat "$said" >&2
if [ "${1:-}" = --try ] && ! grep -q 'Found .* known vulnerabilit' "$said"; then
    echo "the packages were not scanned: the database of vulnerabilities does not answer for all of them from here" >&2
    exit 0
fi
exit 1
