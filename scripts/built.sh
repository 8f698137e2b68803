#!/bin/sh
# The record of a folder of models: the commit, and the hash of each file. perennial.spec.commit reads it where there is no Git. A
# model that was changed since then has other hashes.
#   sh scripts/built.sh .git                                 of an image, from a copy of .git's HEAD and refs
#   sh scripts/built.sh .git >include/models/.commit         of a checkout whose models a deployment reads
set -eu
git=${1:?name the folder .git}

head=$(cat "$git/HEAD" 2>/dev/null || true)
case $head in
'ref: '*)
    ref=${head#ref: }
    commit=$(cat "$git/$ref" 2>/dev/null || sed -n "s|^\\([0-9a-f]*\\) $ref\$|\\1|p" "$git/packed-refs" 2>/dev/null || true)
    ;;
*) commit=$head ;;
esac
# In an image nobody knows whether files were changed before it was built.
if command -v git >/dev/null && status=$(git --git-dir "$git" --work-tree . status --porcelain include/models 2>/dev/null); then
    [ -z "$status" ] && commit="$commit clean" || commit=unknown
fi
echo "${commit:-unknown}"
cd include/models
find . -type f ! -path '*/__pycache__/*' ! -name .commit -exec sha256sum {} +
