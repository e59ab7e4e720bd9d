# The CPU demo in a box:
#   docker build -t pixelthink . && docker run --rm pixelthink
#
# Not built yet: where this was written there was a docker client but no engine to build with.
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home thinker

# torch without CUDA; constraints.txt pins every version
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

WORKDIR /home/thinker/pixelthink
RUN chown thinker:thinker .
USER thinker
COPY --chown=thinker:thinker . .
RUN make setup

CMD ["make", "demo"]
