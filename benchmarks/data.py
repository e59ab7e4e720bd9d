"""Samples per second and peak memory of the checked format at 1,000 and 50,000 rows, against `datasets` alone.

    python benchmarks/data.py

Synthetic 640 × 480 JPEGs, a few hundred distinct ones over and over; each row has a mask, a box and two points. Both
readers go through the same images in the same shuffled order, in processes of their own: `Checked` makes whole samples
(image, mask, target, all checked against each other), `datasets` decodes the image alone. Printed is memory that no
file backs, above what the process had after its imports.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import CLI

WIDTH, HEIGHT = 640, 480
DISTINCT = 256
AIM = 0.10
"""Memory at the larger size may exceed that at the smaller one by this share."""


def jpegs() -> list[bytes]:
    """Distinct images, smooth enough to compress like photographs."""
    from PIL import Image

    rng, files = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, format="JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def rows(count: int, files: list[bytes]) -> Iterator[dict[str, Any]]:
    """Rows of the checked format."""
    from pixelthink.geometry import encode_rle, target_from_mask

    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[100:300, 200:420] = True
    target = target_from_mask(mask)
    common = {
        "source": "benchmark",
        "licence": None,
        "query": "the bright rectangle",
        "width": WIDTH,
        "height": HEIGHT,
        "target": encode_rle(mask),
        "ignore": None,
        "targets": [{"box": list(target.box_xyxy), "points": [value for point in target.points_xy for value in point]}],
        "difficulty": 3.0,
        "difficulty_parts": {},
        "reasoning": {},
        "meta": "{}",
    }
    for i in range(count):
        yield {**common, "id": str(i), "image": {"bytes": files[i % len(files)], "path": None}}


def write(folder: Path, count: int) -> None:
    """A data set in the checked format, in parts as tools/prepare_data.py writes them."""
    from pixelthink.data.checked_format import FORMAT, MANIFEST, VERSION
    from pixelthink.data.prepare import PrepareOptions, write_part

    folder.mkdir()
    parts, source = [], rows(count, jpegs())
    while batch := list(islice(source, PrepareOptions().rows_per_part)):
        name = f"part-{len(parts):05d}.parquet"
        write_part(folder / name, batch)
        parts.append({"file": name, "rows": len(batch)})
    manifest = {"format": FORMAT, "version": VERSION, "parts": parts}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def read(reader: str, folder: str, count: int, samples: int) -> tuple[float, float]:
    """Samples per second and MiB that reading added at most; call it in a process of its own."""
    import torch

    from pixelthink.data.sources.checked import Checked

    torch.set_num_threads(1)
    order = random.Random(0).sample(range(count), min(samples, count))
    before = private()
    if reader == "checked":
        source = Checked(folder)
        source.setup()
        fetch = source.__getitem__
    else:
        import datasets

        table = datasets.load_dataset(
            "parquet",
            data_files=f"{folder}/*.parquet",
            split="train",
            cache_dir=f"{folder}/cache",
            columns=["image"],
            features=datasets.Features({"image": datasets.Image()}),
        )

        def fetch(index: int) -> Any:
            return np.asarray(table[index]["image"].convert("RGB"))

    fetch(order[0])
    highest, started = 0, time.perf_counter()
    for i, index in enumerate(order):
        fetch(index)
        if i % 50 == 0:
            highest = max(highest, private())
    return len(order) / (time.perf_counter() - started), (highest - before) / 2**20


def private() -> int:
    """Bytes of this process that no file backs: a memory map of a data set is the system's cache, not the process's."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")


def main(sizes: tuple[int, int] = (1_000, 50_000), samples: int = 2_000) -> None:
    """Prints the table.

    Args:
        sizes: Rows of the two data sets.
        samples: Rows read of each, at random.
    """
    context = multiprocessing.get_context("spawn")
    found: dict[tuple[str, int], tuple[float, float]] = {}
    print(f"{'reader':10}{'rows':>8}{'samples/s':>12}{'MiB':>8}")
    with tempfile.TemporaryDirectory() as temporary:
        for count in sizes:
            folder = Path(temporary) / str(count)
            write(folder, count)
            for reader in ("checked", "datasets"):
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    found[reader, count] = pool.submit(read, reader, str(folder), count, samples).result()
                speed, memory = found[reader, count]
                print(f"{reader:10}{count:8}{speed:12.0f}{memory:8.1f}", flush=True)
    small, large = sizes
    for count in sizes:
        ratio = found["checked", count][0] / found["datasets", count][0]
        print(f"samples per second, checked / datasets, {count} rows: {ratio:.2f}")
    ratio = found["checked", large][1] / found["checked", small][1]
    print(f"memory of checked, {large} / {small} rows: {ratio:.3f}, aim ≤ {1 + AIM:.2f}")


if __name__ == "__main__":
    CLI(main, as_positional=False)
