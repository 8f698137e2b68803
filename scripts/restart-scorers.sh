#!/bin/sh
# Replaces the scorers one after another by new ones, with what .env, the checkout and the image say now. Meanwhile the others
# answer: no request fails. docs/operate.md, "Scorers", tells more.
set -eu

before=$(docker compose ps --quiet scorer)
if [ -z "$before" ]; then
    echo "no scorer is running: start the deployment with docker compose up --detach --wait" >&2
    exit 1
fi
more=$(($(echo "$before" | wc -l) + 1))
for one in $before; do
    docker compose up --detach --wait --no-deps --no-recreate --scale "scorer=$more" scorer
    docker stop "$one" >/dev/null
    docker rm "$one" >/dev/null
done
