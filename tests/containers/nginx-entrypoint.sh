#!/bin/sh
# What the official image does before it starts the server: each /etc/nginx/templates/NAME.template becomes
# /etc/nginx/conf.d/NAME, in which ${VARIABLE} of the environment is filled in. What is unknown stays, such as nginx's own $host.
set -eu
known=$(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/${\1}/p' | tr '\n' ' ')
for template in /etc/nginx/templates/*.template; do
    if [ -f "$template" ] && [ -w /etc/nginx/conf.d ]; then
        envsubst "$known" <"$template" >"/etc/nginx/conf.d/$(basename "$template" .template)"
    fi
done
exec "$@"
