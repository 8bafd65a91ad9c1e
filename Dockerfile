# nydus-service in a container: docker build -t nydus-service .
#
# The final stage has Python, the packages, and nothing to build with: no compiler, no pip. The user is no
# root: the command line needs none (oci: directories, archives). `serve` beside a node's containerd opens a socket that is
# root's: give it user 0 and no capabilities, as deploy/kubernetes/daemonset.yaml does.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
# Extras: "otel" for traces, "encryption" for --encrypt, "acceld" for `config import-acceld`; with commas between.
ARG EXTRAS=otel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY nydus_service ./nydus_service
RUN python -m venv /opt/nydus-service \
 && /opt/nydus-service/bin/pip install --no-cache-dir --only-binary :all: --no-binary nydus-service ".[${EXTRAS}]" \
 && /opt/nydus-service/bin/nydus-service --version \
 && /opt/nydus-service/bin/pip uninstall -y pip

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/nydus-service /opt/nydus-service
ENV PATH=/opt/nydus-service/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["nydus-service"]
CMD ["--help"]
