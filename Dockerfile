# The whole stack in an image, installed by `make install`:
#
#   docker build --target cpu -t mmgcvit:cpu .
#   docker build --target cuda -t mmgcvit:cuda .
#
# docs/install.md says how to run them. PyTorch brings the CUDA libraries; the host has the NVIDIA driver.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS source
# make for `make install`, git for data sets and packages from repositories; Debian keeps only their newest versions
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /mmgcvit
COPY . .
ENV PATH=/mmgcvit/.venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1
CMD ["bash"]

FROM source AS cpu
RUN make install CPU=1

FROM source AS cuda
RUN make install
