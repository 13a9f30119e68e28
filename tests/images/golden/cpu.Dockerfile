# cpu-torch2.13.0-py3.11, image f2134e778a2eb8d9fd20a6c26f93e1b0ad9349c9a6f28ae055090f9ee6d2c39b

FROM python:3.11-slim-bookworm

RUN apt-get update && apt-get install -y --no-install-recommends \
    ca-certificates \
    && rm -rf /var/lib/apt/lists/*

# With an index of CPU builds torch comes without CUDA. No passwords in its address:
# build arguments stay readable in the image.
ARG PIP_EXTRA_INDEX_URL

RUN python -m pip install --no-cache-dir --disable-pip-version-check \
    torch==2.13.0

RUN python -m pip install --no-cache-dir --disable-pip-version-check \
    torch==2.13.0 \
    accelerate==1.15.0 \
    datasets==5.2.0 \
    fastokens==0.3.5 \
    huggingface-hub==2.4.0 \
    jinja2==3.1.6 \
    numpy==2.4.6 \
    obstore==0.12.1 \
    orjson==3.13.0 \
    peft==0.21.2 \
    pyarrow==26.0.1 \
    pydantic==2.14.3 \
    pyyaml==6.0.3 \
    safetensors==0.8.0 \
    tokenizers==0.23.3 \
    transformers==5.23.0 \
    trl==1.16.0

ENV HF_HUB_DISABLE_TELEMETRY="1"

ENV PYTHONPATH="/opt/ft-source"

ENV PYTHONUNBUFFERED="1"

RUN python -m pip install --no-cache-dir --disable-pip-version-check \
    rich==15.0.0 \
    typer==0.29.2

# A number, so that a cluster can see that it is not root's.
RUN groupadd --non-unique --gid 1000 ft \
    && useradd --non-unique --uid 1000 --gid 1000 --create-home --home-dir /home/ft ft \
    && install -d -o 1000 -g 1000 /ft/store /ft/cache \
    && printf '#!/bin/sh\nexec python -P -m ft.launcher.cli.app "$@"\n' >/usr/local/bin/ft \
    && chmod 755 /usr/local/bin/ft

ENV HOME="/home/ft"

ENV XDG_CACHE_HOME="/ft/cache"

USER 1000:1000

WORKDIR /home/ft

LABEL ft.image="f2134e778a2eb8d9fd20a6c26f93e1b0ad9349c9a6f28ae055090f9ee6d2c39b" ft.source="0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

ADD ft-source.tar /opt/ft-source/
