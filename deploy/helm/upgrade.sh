#!/bin/sh
# Installs or upgrades both releases to an image, by its digest; docs/operate.md says what to do before.
#   sh deploy/helm/upgrade.sh NAMESPACE REPOSITORY@sha256:… [REPOSITORY-git@sha256:…]
# The second image is that of `models`, where models come from Git.
set -eu
namespace=${1:?name the namespace}
image=${2:?name the image as REPOSITORY@sha256:…}
models=${3:-}
here=$(dirname "$0")
for one in "$image" $models; do
    case $one in *@sha256:*) ;; *) echo "$one has no digest" >&2 && exit 1 ;; esac
done
repository=${image%@*}
digest=${image#*@}

set -- --set "image.repository=$repository" --set "image.digest=$digest"
[ -z "$models" ] || set -- "$@" --set "models.image.repository=${models%@*}" --set "models.image.digest=${models#*@}"
# Its init job runs before anything else of it is changed.
helm upgrade --install perennial "$here/perennial" --namespace "$namespace" --wait --timeout 40m "$@"
helm upgrade --install airflow airflow --repo https://airflow.apache.org --version 1.22.0 --namespace "$namespace" \
    --values "$here/values.yaml" --wait --timeout 20m \
    --set "images.airflow.repository=$repository" --set "images.airflow.digest=$digest"
kubectl --namespace "$namespace" rollout status deployment/perennial-mlflow deployment/perennial-watchdog
