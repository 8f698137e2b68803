# What the Dockerfile and docker-compose.yaml take from a registry, made from Debian's packages, for machines that reach none.
# Each image keeps to what the official one of its name promises: users, folders, entrypoint, signals.
ARG DEBIAN=perennial-test/debian

FROM ${DEBIAN} AS debian
# Nothing below is kept, so nothing needs to survive a power failure.
RUN echo force-unsafe-io >/etc/dpkg/dpkg.cfg.d/fast \
    && echo 'path-exclude /usr/share/doc/*' >>/etc/dpkg/dpkg.cfg.d/fast \
    && echo 'path-exclude /usr/share/man/*' >>/etc/dpkg/dpkg.cfg.d/fast \
    && apt-get update -q

FROM debian AS python
RUN apt-get install -q -y --no-install-recommends python3 python3-venv && ln -s python3 /usr/bin/python
# Where packages come from on this machine, and whose word it takes for it.
COPY certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY pip.conf /etc/pip.conf
COPY uv.toml /etc/uv/uv.toml
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_CERT=/etc/ssl/certs/ca-certificates.crt

FROM debian AS postgres
RUN groupadd --system --gid 999 postgres \
    && useradd --system --uid 999 --gid 999 --home-dir /var/lib/postgresql --shell /bin/bash postgres \
    && install --directory /etc/postgresql-common \
    && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf \
    && apt-get install -q -y --no-install-recommends -o Dpkg::Options::=--force-confold postgresql-17 \
    && install --directory --owner 999 --group 999 --mode 1777 /var/lib/postgresql/data /var/run/postgresql
COPY postgres-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
ENV PATH=/usr/lib/postgresql/17/bin:/usr/local/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/data
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
STOPSIGNAL SIGINT
VOLUME /var/lib/postgresql/data

FROM debian AS redis
RUN groupadd --system --gid 1000 redis && useradd --system --uid 999 --gid 1000 redis \
    && apt-get install -q -y --no-install-recommends redis-server \
    && install --directory --owner 999 --group 1000 /data
WORKDIR /data
CMD ["redis-server"]
VOLUME /data

# Its user has the number 101 as in the official image; the service says what it runs.
FROM debian AS nginx
RUN groupadd --system --gid 101 nginx && useradd --system --uid 101 --gid 101 --no-create-home nginx \
    && apt-get install -q -y --no-install-recommends nginx-light libnginx-mod-stream wget
STOPSIGNAL SIGQUIT
