# cpu-torch2.13.0-py3.11, image b7aa1a3def765289fccf3b141d92f01a9411edf31ca8eb070ee106ca092e268f

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

LABEL ft.image="b7aa1a3def765289fccf3b141d92f01a9411edf31ca8eb070ee106ca092e268f" ft.source="0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

ADD ft-source.tar /opt/ft-source/
