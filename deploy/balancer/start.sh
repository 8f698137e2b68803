#!/bin/sh
# The service `balancer` of docker-compose.yaml: fills in nginx.conf, and becomes nginx.
set -eu

# Docker's own server of names, in a container.
resolver=${PERENNIAL_BALANCER_RESOLVER:-$(sed -n 's/^nameserver  *\([0-9.]*\)$/\1/p' /etc/resolv.conf | head -n 1)}
# Whole seconds, and one more for the way.
patience=$((${PERENNIAL_SERVE_DEADLINE%%.*} + 2))
sed -e "s|@LISTEN@|$PERENNIAL_BALANCER_LISTEN|g" -e "s|@HEALTH@|$PERENNIAL_BALANCER_HEALTH|g" \
    -e "s|@SCORERS@|$PERENNIAL_BALANCER_SCORERS|g" -e "s|@BYTES@|$PERENNIAL_SERVE_MOST_BYTES|g" \
    -e "s|@PATIENCE@|$patience|g" -e "s|@RESOLVER@|${resolver:-127.0.0.11}|g" \
    "$(dirname "$0")/nginx.conf" >"$PERENNIAL_BALANCER_FOLDER/nginx.conf"
# With an argument, such as -t, nginx does only that.
[ $# -gt 0 ] || set -- -g "daemon off;"
exec nginx -e stderr -p "$PERENNIAL_BALANCER_FOLDER/" -c nginx.conf "$@"
