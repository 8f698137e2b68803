#!/bin/sh
# What an image is built from: the commit, from a copy of .git's HEAD and refs, and the hash of each file of a model.
#   sh scripts/built.sh .git
# perennial.training.fit.code_state reads it where there is no git. A model that was changed since then has other hashes.
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
echo "${commit:-unknown}"
find include/models -type f -exec sha256sum {} +
