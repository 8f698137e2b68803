#!/bin/sh
# A forwarder of docker-compose.egress.yaml: becomes nginx, which passes connections on as they are. PERENNIAL_EGRESS has a
# port=host:port for each port that it listens on.
set -eu
folder=${PERENNIAL_EGRESS_FOLDER:-/tmp}
{
    # In nginx's own image this is part of the program.
    module=/usr/lib/nginx/modules/ngx_stream_module.so
    [ ! -e "$module" ] || echo "load_module $module;"
    cat <<CONFIG
pid $folder/nginx.pid;
error_log stderr warn;
worker_processes 1;
events { worker_connections 1024; }
stream {
    log_format plain '\$remote_addr \$upstream_addr \$status \$bytes_sent bytes to, \$bytes_received from \$session_time s';
    access_log /dev/stdout plain;
    # Docker's own server of names. An address is asked for again, since it may change.
    resolver 127.0.0.11 valid=10s ipv6=off;
    resolver_timeout 5s;
    proxy_connect_timeout 10s;
    # A connection to a database may rest.
    proxy_timeout 12h;
    proxy_socket_keepalive on;
CONFIG
    for pair in $PERENNIAL_EGRESS; do
        echo "    server { listen ${pair%%=*}; set \$to \"${pair#*=}\"; proxy_pass \$to; }"
    done
    echo "}"
} >"$folder/nginx.conf"
[ $# -gt 0 ] || set -- -g "daemon off;"
exec nginx -e stderr -p "$folder/" -c nginx.conf "$@"
