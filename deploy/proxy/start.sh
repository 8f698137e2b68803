#!/bin/sh
# The service `proxy` of docker-compose.yaml: fills in nginx.conf, and becomes nginx.
set -eu
fail() {
    echo "proxy: $1. docs/operate.md, “Behind TLS”, tells more." >&2
    exit 1
}

host=${PERENNIAL_PUBLIC_HOST:-}
case $host in
"") fail "PERENNIAL_PUBLIC_HOST is not set. Write the name that people type into .env, without airflow., mlflow. or scorer. before it" ;;
*[!a-z0-9.:-]*) fail "PERENNIAL_PUBLIC_HOST is $host. It may have lower-case letters, digits, dots, hyphens and a port" ;;
esac
for file in certificate.pem key.pem; do
    [ -r "$PERENNIAL_TLS/$file" ] || fail "$file cannot be read by user $(id -u). Set the file's owner or mode"
done

# Docker's own server of names, in a container.
resolver=$(sed -n 's/^nameserver  *\([0-9.]*\)$/\1/p' /etc/resolv.conf | head -n 1)
sed -e "s|@HOST@|$host|g" -e "s|@NAME@|${host%%:*}|g" -e "s|@TLS@|$PERENNIAL_TLS|g" \
    -e "s|@LISTEN@|$PERENNIAL_PROXY_LISTEN:$PERENNIAL_PROXY_PORT|g" -e "s|@HEALTH@|$PERENNIAL_PROXY_HEALTH|g" \
    -e "s|@AIRFLOW@|$PERENNIAL_PROXY_AIRFLOW|g" -e "s|@MLFLOW@|$PERENNIAL_PROXY_MLFLOW|g" \
    -e "s|@BALANCER@|$PERENNIAL_PROXY_BALANCER|g" \
    -e "s|@RESOLVER@|${resolver:-127.0.0.11}|g" "$(dirname "$0")/nginx.conf" >"$PERENNIAL_PROXY_FOLDER/nginx.conf"
# With an argument, such as -t, nginx does only that.
[ $# -gt 0 ] || set -- -g "daemon off;"
exec nginx -e stderr -p "$PERENNIAL_PROXY_FOLDER/" -c nginx.conf "$@"
