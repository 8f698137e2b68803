# One image for every process of the deployment; docker-compose.yaml says which of them a container is. Any builder can build it:
# it needs nothing but its base image and a package index, also where no registry is reached for a newer front end of BuildKit.
ARG PERENNIAL_PYTHON_IMAGE=python:3.12-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254

FROM ${PERENNIAL_PYTHON_IMAGE} AS build
ENV UV_LINK_MODE=copy PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/perennial
RUN python -m venv /opt/venv
COPY requirements-bootstrap.lock requirements.lock ./
# What runs, and nothing that only tests need. Every package is checked against its hash. The bytecode is compiled here, since
# nothing can be written later.
RUN /opt/venv/bin/pip install --quiet --only-binary :all: --require-hashes -r requirements-bootstrap.lock \
    && /opt/venv/bin/uv pip install --python /opt/venv/bin/python --require-hashes --no-deps \
        --compile-bytecode -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY include/perennial include/perennial
RUN /opt/venv/bin/uv pip install --python /opt/venv/bin/python --no-deps --no-build-isolation -e . \
    && /opt/venv/bin/python -m compileall -q include/perennial
COPY dags dags
COPY plugins plugins
COPY include/models include/models
# Which commit this is, for the record of each training; in a folder without .git, LICENSE comes alone and nothing is known.
COPY LICENSE .gi[t] /tmp/git/
COPY scripts/built.sh /tmp/
# A checkout under umask 077 is for its owner alone, but the image's user is another one.
RUN sh /tmp/built.sh /tmp/git >BUILT && chmod -R a+rX .

FROM ${PERENNIAL_PYTHON_IMAGE}
RUN groupadd --gid 50000 perennial \
    && useradd --uid 50000 --gid 50000 --home-dir /opt/airflow --no-create-home --shell /usr/sbin/nologin perennial \
    # Volumes take their owner from here.
    && install --directory --owner 50000 --group 50000 /opt/airflow /var/lib/perennial /var/lib/mlflow /var/log/airflow /scratch \
        /opt/perennial/include/models-from-git \
    && install --directory --owner 50000 --group 50000 --mode 0700 /tokens /recorders
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/perennial /opt/perennial
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin
WORKDIR /opt/perennial
USER 50000:50000
CMD ["perennial", "--help"]
