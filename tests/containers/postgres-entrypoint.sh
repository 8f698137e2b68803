#!/bin/sh
# What the official image does before it starts the server: an empty data folder becomes a cluster with POSTGRES_USER and
# POSTGRES_PASSWORD, which listens everywhere and asks everybody for a password.
set -eu
if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
    : "${POSTGRES_PASSWORD:?}"
    umask 077
    printf '%s\n' "$POSTGRES_PASSWORD" >/tmp/password
    # The words of POSTGRES_INITDB_ARGS are arguments.
    # shellcheck disable=SC2086
    initdb --username "${POSTGRES_USER:-postgres}" --pwfile /tmp/password ${POSTGRES_INITDB_ARGS:-} --pgdata "$PGDATA"
    rm /tmp/password
    printf '\nhost all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
    printf "\nlisten_addresses = '*'\n" >>"$PGDATA/postgresql.conf"
fi
exec "$@"
