# `docker build -t rescue .` for a CPU, `docker build -t rescue --build-arg DEVICE=cuda .` for NVIDIA's
# GPUs; `make docker` does the first. Runs as a user without rights:
#   docker run --gpus all --shm-size=8g -v DATA:/data:ro -v RUNS:/runs rescue \
#       train --recipe a3 data.root=/data
ARG BASE=docker.io/library/debian:12-slim

FROM ${BASE} AS build
ARG DEVICE=cpu
# PyPI's wheels of torch for Linux are those for CUDA
ARG CPU_WHEELS=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /venv
RUN case "$DEVICE" in \
        cpu) /venv/bin/pip install --index-url "$CPU_WHEELS" 'torch>=2.11' 'torchvision>=0.26' ;; \
        cuda) /venv/bin/pip install 'torch>=2.11' 'torchvision>=0.26' ;; \
        *) echo "DEVICE: '$DEVICE' must be cpu or cuda." >&2; exit 2 ;; \
    esac
COPY pyproject.toml README.md LICENSE /src/
COPY recipes /src/recipes
COPY rescue_cli /src/rescue_cli
RUN /venv/bin/pip install '/src[slurm]' \
    && find /venv -name __pycache__ -prune -exec rm -rf {} +

FROM ${BASE}
# g++ and Python's headers are for torch.compile
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ python3 python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 rescue \
    && install --directory --owner=rescue /runs
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH
USER rescue
WORKDIR /runs
ENTRYPOINT ["rescue"]
CMD ["--help"]
