# Every Ray node, head and workers: data preparation, training, evaluation. NVIDIA GPUs by CUDA 13.0; it runs on CPUs too.
#
#   docker build -f deploy/images/ray.Dockerfile -t sleddog/ray:0.1.0 \
#     --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" .
#
# Build arguments:
#   CUDA_ARCHITECTURES     of the GPUs that DeepSpeed's operations are compiled for; 9.0 is H100 and H200
#   EFA_INSTALLER_VERSION  for AWS: the release of the EFA installer (libfabric, NCCL's plugin). Empty leaves it out, and
#   EFA_INSTALLER_SHA256   the checksum of its archive, which you have looked up. Without EFA NCCL takes InfiniBand or RoCE
#                          by the user libraries of Debian that are in any case here, else TCP.
#
# Ubuntu's own Python is another one than the tests run on, so Python is taken from the image of the control plane. The
# bases are pinned by their exact tags. To pin them by digest too, look the digests up in your registry and append them.

FROM python:3.11.15-slim-bookworm AS python

FROM nvidia/cuda:13.0.3-cudnn-devel-ubuntu24.04 AS build
ARG CUDA_ARCHITECTURES=9.0
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY --from=python /usr/local /usr/local
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ libffi8 libsqlite3-0 libssl3t64 ninja-build \
 && rm -rf /var/lib/apt/lists/* \
 && ldconfig
WORKDIR /build
RUN python3.11 -m venv /opt/sleddog
ENV PATH=/opt/sleddog/bin:$PATH
COPY deploy/images/cluster.txt deploy/images/cuda.txt ./
# DeepSpeed is built from source, by the PyTorch that it will run with, which must be there first.
RUN grep -v '^deepspeed==' cluster.txt > without-deepspeed.txt \
 && pip install --no-deps --only-binary :all: -r without-deepspeed.txt -r cuda.txt
RUN grep '^deepspeed==' cluster.txt > deepspeed.txt \
 && DS_BUILD_OPS=0 DS_BUILD_UTILS=1 DS_BUILD_FUSED_ADAM=1 TORCH_CUDA_ARCH_LIST="$CUDA_ARCHITECTURES" \
    pip install --no-deps --no-build-isolation -r deepspeed.txt
COPY LICENSE README.md pyproject.toml ./
COPY moe moe
COPY ray_jobs ray_jobs
COPY service service
RUN pip install --no-deps --no-build-isolation . && pip check

FROM nvidia/cuda:13.0.3-base-ubuntu24.04
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG EFA_INSTALLER_VERSION=
ARG EFA_INSTALLER_SHA256=
LABEL org.opencontainers.image.title="Sleddog Ray node" \
      org.opencontainers.image.description="Data preparation, training and evaluation of Sleddog on Ray" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY --from=python /usr/local /usr/local
# g++ compiles the experts' CPU kernel at its first use; bubblewrap holds code that models write; the rest of the first
# line is what Python links to, the second is RDMA.
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
    bubblewrap ca-certificates curl g++ libffi8 libsqlite3-0 libssl3t64 \
    ibverbs-providers libibverbs1 librdmacm1t64 \
 && if [ -n "$EFA_INSTALLER_VERSION" ]; then \
      curl -fsSLo /tmp/efa.tar.gz \
        "https://efa-installer.amazonaws.com/aws-efa-installer-$EFA_INSTALLER_VERSION.tar.gz" \
      && echo "$EFA_INSTALLER_SHA256  /tmp/efa.tar.gz" | sha256sum --check \
      && tar -xzf /tmp/efa.tar.gz -C /tmp \
      && env --chdir=/tmp/aws-efa-installer ./efa_installer.sh --yes --skip-kmod --skip-limit-conf --no-verify \
      && rm -rf /tmp/efa.tar.gz /tmp/aws-efa-installer; \
    fi \
 && rm -rf /var/lib/apt/lists/* \
 && ldconfig \
 && install -d -m 1777 /runs /home/sleddog
COPY --from=build /opt/sleddog /opt/sleddog
# The EFA installer's releases put NCCL's plugin in either directory; some clouds mount the driver in the last one.
ENV PATH=/opt/sleddog/bin:/opt/amazon/efa/bin:$PATH \
    LD_LIBRARY_PATH=/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu:/opt/amazon/ofi-nccl/lib:/opt/amazon/efa/lib:/usr/local/nvidia/lib64 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/home/sleddog \
    USER=sleddog \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /home/sleddog
USER 10001:10001
EXPOSE 6379 8080 8265
# The agent of every Ray node, head or worker, tells the node's health without a token.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:52365/api/healthz', timeout=4)"]
CMD ["ray", "--help"]
