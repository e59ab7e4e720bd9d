"""GRPO as pure tensor functions: no Lightning, no models."""
