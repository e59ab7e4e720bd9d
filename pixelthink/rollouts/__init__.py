"""Rollout engines: prompts in, sampled completions out; see `pixelthink.rollouts.base`."""
