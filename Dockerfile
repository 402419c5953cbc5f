# The service as an image: `docker build -t driftline .`. The Python is the one the tests run on.
FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel . \
    && python -m venv /opt/driftline \
    && /opt/driftline/bin/pip install --no-cache-dir /wheel/*.whl

FROM python:3.11-slim-bookworm
# A number of its own, so that a mounted directory can be given to it; it may write only /data.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin driftline \
    && install --directory --owner driftline --mode 0750 /data
COPY --from=build /opt/driftline /opt/driftline
ENV PATH=/opt/driftline/bin:/usr/local/bin:/usr/bin:/bin
ENV DRIFTLINE_DATA_DIR=/data
USER driftline
WORKDIR /data
VOLUME ["/data"]
# `status` fails until the topic is replayed; the start period gives that ten minutes, and ends at the first success.
HEALTHCHECK --interval=10s --timeout=10s --start-period=600s --start-interval=2s CMD ["driftline", "status"]
ENTRYPOINT ["driftline"]
CMD ["serve"]
