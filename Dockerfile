# Every node of a cluster: Python, torch with its CUDA libraries, Ray, and what a run needs.
# `ray job submit --working-dir .` brings its own code, which comes first on the path; the code
# in here is for KubeRay, where nothing is uploaded.
# Yours to pin: `docker buildx imagetools inspect python:3.11.14-slim-bookworm` prints the digest that
# belongs behind the name (`@sha256:...`).
FROM python:3.11.14-slim-bookworm
# checkov:skip=CKV_DOCKER_2:Ray's nodes are watched by Ray and by probes, not by the container runtime

# ssh and rsync: the head sets up its workers. A C compiler: Triton builds the launchers of its kernels
# with it (docs/gpu.md). The user has the number of the host's `ubuntu`.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev openssh-client rsync \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --shell /bin/bash ray \
    && install --directory --owner ray --group ray /home/ray/.ray

# The wheels of torch bring CUDA, so that a driver on the host is all that they need of it.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /opt/panoply
COPY pyproject.toml requirements.lock README.md LICENSE ./
# Every package by its hash (`make lock` writes the file); what it lists includes boto3, with which
# the autoscaler on the head starts and ends nodes on AWS, and what building Panoply itself needs.
RUN pip install --no-cache-dir --require-hashes --requirement requirements.lock
COPY panoply/__init__.py panoply/
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .
COPY actors actors
COPY jobs jobs
COPY panoply panoply
COPY web web
COPY workflows workflows

ARG COMMIT=unknown
ENV PANOPLY_COMMIT=$COMMIT PYTHONPATH=/opt/panoply PYTHONUNBUFFERED=1
# A stopped job gets this long to end its training; Ray's 3 s would kill it half-way.
ENV RAY_JOB_STOP_WAIT_TIME_S=60
# The proxy of Ray Serve on every node closes connections that never say what they want.
ENV RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=actors.slow_clients:install
USER ray
