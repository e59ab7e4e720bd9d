"""Peak memory of loss and backward over a large vocabulary: in blocks against full logits.

    python benchmarks/memory.py

Each way runs in a process of its own. What is printed is the peak above the weights and their gradient, which both
ways need.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from typing import Any

WAYS = ("full", "blocks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=152_064)
    parser.add_argument("--tokens", type=int, default=8 * 128)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--entropy", action="store_true", help="with an entropy bonus")
    options = parser.parse_args()
    print(f"{options.tokens} tokens, hidden {options.hidden}, vocabulary {options.vocabulary}, float32: "
          f"logits of {options.tokens * options.vocabulary * 4 / 2**20:.0f} MiB")  # fmt: skip
    for trained in (False, True):
        found = {way: measure(way, {**vars(options), "trained": trained}) for way in WAYS}
        for way, (peak, seconds, value) in found.items():
            print(f"  {'trained' if trained else 'frozen'} head, {way:7} peak {peak:7.0f} MiB, "
                  f"{seconds:6.2f} s, loss {value:.6f}")  # fmt: skip
        print(f"  blocks / full = {found['blocks'][0] / max(found['full'][0], 1):.3f}, aim ≤ 0.167")


def measure(way: str, settings: dict[str, Any]) -> tuple[float, float, float]:
    """Peak MiB above weights and gradient, seconds and loss of one way, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=work, args=(theirs, way, settings))
    worker.start()
    result: tuple[float, float, float] = ours.recv()
    worker.join()
    return result


def work(pipe: Connection, way: str, settings: dict[str, Any]) -> None:
    import torch
    from torch import nn

    from pixelthink.policies.logprobs import selected_logprobs

    torch.manual_seed(0)
    head = nn.Linear(settings["hidden"], settings["vocabulary"], bias=False)
    head.weight.data *= 3
    head.requires_grad_(settings["trained"])
    hidden = torch.randn(settings["tokens"], settings["hidden"], requires_grad=True)
    token_ids = torch.randint(0, settings["vocabulary"], (settings["tokens"],))
    (torch.randn(64, 64) @ torch.randn(64, 64)).sum()  # the libraries' own buffers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    if way == "full":
        table = head(hidden).log_softmax(dim=-1)
        logprobs = table.gather(1, token_ids[:, None])[:, 0]
        entropy = -(table.exp() * table).sum(dim=-1) if settings["entropy"] else None
    else:
        logprobs, entropy = selected_logprobs(hidden, head, token_ids, with_entropy=settings["entropy"])
    loss = -logprobs.mean() if entropy is None else -(logprobs + 0.01 * entropy).mean()
    loss.backward()
    seconds = time.perf_counter() - started
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    gradient = head.weight.numel() * 4 / 2**20 if settings["trained"] else 0.0
    pipe.send((peak - gradient, seconds, loss.item()))


if __name__ == "__main__":
    main()
