#!/bin/sh
# Puts a backup of scripts/backup.sh back, on this machine or another: databases are replaced, files added.
#   sh scripts/restore.sh /backups/2026-11-21
# Needs the .env of the stack that was copied, or another with the same AIRFLOW_FERNET_KEY and PERENNIAL_JUDGE_KEY.
# Stops the stack; does not start it.
set -eu
place=${1:?name the folder of a backup}

unpack() {
    docker compose run --rm --no-deps -T "$1" tar --extract --directory "$2" <"$place/$3"
}

# Before anything is touched.
(cd "$place" && sha256sum --check --quiet SHA256SUMS)
docker compose --profile scale down
# Starts PostgreSQL and makes the roles that own the databases.
docker compose run --rm -T init
for database in airflow perennial mlflow; do
    docker compose exec -T postgres pg_restore --username postgres --dbname postgres --clean --if-exists --create \
        --exit-on-error <"$place/$database.dump"
done
unpack worker /var/lib/perennial state.tar
unpack mlflow /var/lib/mlflow mlflow.tar
# The passwords of this .env, the schemas of this release.
docker compose run --rm -T init
docker compose up --detach --wait mlflow
# The alerts that waited are not sent, and MLflow and the lake, which were copied later, go back to what the ledger says.
docker compose run --rm --no-deps -T judge perennial verify --settle
# Nobody has cut off the end of the record of decisions in the backup.
[ ! -s "$place/judge.head" ] || docker compose run --rm --no-deps -T judge perennial verify --head - <"$place/judge.head"
echo 'All agrees. To go on: docker compose up --detach'
