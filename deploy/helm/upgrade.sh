#!/bin/sh
# Installs or upgrades both releases to an image, by its digest; docs/operate.md says what to do before.
#   sh deploy/helm/upgrade.sh NAMESPACE REPOSITORY@sha256:…
set -eu
namespace=${1:?name the namespace}
image=${2:?name the image as REPOSITORY@sha256:…}
here=$(dirname "$0")
repository=${image%@*}
digest=${image#*@}
case $digest in sha256:*) ;; *) echo "$image has no digest" >&2 && exit 1 ;; esac

# Its init job runs before anything else of it is changed.
helm upgrade --install perennial "$here/perennial" --namespace "$namespace" --wait --timeout 40m \
    --set "image.repository=$repository" --set "image.digest=$digest"
helm upgrade --install airflow airflow --repo https://airflow.apache.org --version 1.22.0 --namespace "$namespace" \
    --values "$here/values.yaml" --wait --timeout 20m \
    --set "images.airflow.repository=$repository" --set "images.airflow.digest=$digest"
kubectl --namespace "$namespace" rollout status deployment/perennial-mlflow deployment/perennial-watchdog
