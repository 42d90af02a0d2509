# The control plane: REST API, scheduler, web page. No PyTorch, no GPU.
#
#   docker build -f deploy/images/control-plane.Dockerfile -t sleddog/control-plane:0.1.0 \
#     --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" .
#
# The base is pinned by its exact tag. To pin it by digest too, look the digest up in your registry and append it.

FROM python:3.11.15-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/sleddog
ENV PATH=/opt/sleddog/bin:$PATH
COPY deploy/images/control-plane.txt ./
RUN pip install --no-deps --only-binary :all: -r control-plane.txt
COPY LICENSE README.md pyproject.toml ./
COPY moe moe
COPY ray_jobs ray_jobs
COPY service service
RUN pip install --no-deps --no-build-isolation . && pip check

FROM python:3.11.15-slim-bookworm
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Sleddog control plane" \
      org.opencontainers.image.description="REST API, scheduler and web page of Sleddog" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# Writable by any user, so that the container may run under another number (`--user`) too.
RUN install -d -m 1777 /var/lib/sleddog /runs /home/sleddog
COPY --from=build /opt/sleddog /opt/sleddog
ENV PATH=/opt/sleddog/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/home/sleddog \
    USER=sleddog \
    SLEDDOG_DATA_DIR=/var/lib/sleddog
WORKDIR /home/sleddog
USER 10001:10001
EXPOSE 8700
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=6 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8700/healthz', timeout=4)"]
ENTRYPOINT ["sleddog"]
CMD ["serve", "--host", "0.0.0.0"]
