# syntax=docker/dockerfile:1

# ---- build: a virtual environment from the lock, then the project itself -------------------
FROM python:3.12-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /src
ENV PIP_CACHE_DIR=/var/cache/pip
RUN python -m venv /opt/seedance && python -m venv /opt/build

# Before the sources, so that a change of ours does not fetch them again.
COPY requirements/build.txt requirements/prod.txt requirements/
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements/build.txt \
    && /opt/seedance/bin/pip install --require-hashes --only-binary :all: -r requirements/prod.txt

COPY pyproject.toml README.md LICENSE ./
COPY alembic alembic
COPY api_client api_client
COPY models models
COPY simulator simulator
COPY worker worker
RUN /opt/build/bin/python -m hatchling build -t wheel -d /dist \
    && /opt/seedance/bin/pip install --no-deps --no-index /dist/*.whl \
    && /opt/seedance/bin/python -m compileall -q /opt/seedance/lib

# ---- what runs ------------------------------------------------------------------------------
FROM python:3.12-slim

ENV PATH=/opt/seedance/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TZ=UTC

RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/seedance --create-home seedance
COPY --from=build /opt/seedance /opt/seedance
# Volumes here begin with this owner.
RUN install -d -o seedance -g seedance /archive /flower

# By number, so that an orchestrator can tell that it is not root.
USER 10001:10001
WORKDIR /var/lib/seedance

# Celery takes this as "finish what you hold, then end". Process 1 is docker-compose's `init`;
# health checks are there too, because each role has another.
STOPSIGNAL SIGTERM
CMD ["seedance", "--help"]
