#!/bin/sh
# Copies the deployed stack while it works: its three databases, and what lies in its volumes. docs/operate.md tells more.
#   sh scripts/backup.sh /backups/2026-11-21
# .env is left out: keep it with your other secrets. A lake or artifacts on an object store are left to that store.
set -eu
place=${1:?name a new folder}

run() {
    service=$1
    shift
    docker compose exec -T "$service" "$@"
}

# Exits with 1 if a file went while it was read: one that nobody names, since those are held.
pack() {
    run "$1" tar --create --directory "$2" --exclude ./staging --exclude ./backup-until --exclude ./judge.head . >"$place/$3" || [ $? -eq 1 ]
}

umask 077
mkdir "$place"
run judge perennial backup --hold 24
trap 'run judge perennial backup --release' EXIT

# The newest decision. What is written down of it on this host stays there, so that a restore of an older backup is noticed.
run judge cat /var/lib/perennial/judge.head >"$place/judge.head" 2>/dev/null || true
# The order matters: what the ledger names was written before it was copied, so what is copied after it has all of that.
# perennial is ledger, catalog and predictions as of one moment. Airflow's comes first, so that at worst a run is done again.
for database in airflow perennial mlflow; do
    run postgres pg_dump --username postgres --format custom "$database" >"$place/$database.dump"
done
pack worker /var/lib/perennial state.tar
pack mlflow /var/lib/mlflow mlflow.tar
(cd "$place" && sha256sum -- *.dump *.tar judge.head >SHA256SUMS)
