"""A vLLM server behind an authenticating front: `python -m pixelthink.serving`; see `docs/serving.md`."""
