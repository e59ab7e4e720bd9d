"""Packaging; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="pixelthink",
    version="0.1.0",
    description="Train, evaluate and run reasoning-segmentation models that think only as long as a question needs",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["pixelthink", "pixelthink.*"]),
    package_data={"pixelthink.evaluation.report": ["page.html", "page.css", "page.js"]},
    install_requires=[
        "torch>=2.8",
        "torchvision",
        "lightning>=2.6",
        "transformers>=5.16",
        "jsonargparse[omegaconf,signatures]>=4.49",
        "omegaconf>=2.3",
        "torchmetrics>=1.8",
        "tensorboard>=2.18",
        "numpy>=1.26",
        "scipy>=1.15",
        "pillow>=10",
        "opencv-python-headless>=4.9",
        "pycocotools>=2.0.8",
        "datasets>=3",
        "huggingface_hub>=0.34",
        "pyarrow>=16",
        "tqdm>=4.60",
        "httpx>=0.27",
        "cachetools>=5",
        "jinja2>=3.1",
        "markupsafe>=2",
        "safetensors>=0.4",
        "openai>=2",
        "tenacity>=9",
    ],
    extras_require={
        "vllm": ["vllm>=0.32"],
        "sam2": ["sam2>=1.1"],
        "peft": ["peft>=0.18"],
        "bitsandbytes": ["bitsandbytes>=0.48"],
        "dev": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.12", "mypy>=1.15", "playwright>=1.49"],
    },
)
