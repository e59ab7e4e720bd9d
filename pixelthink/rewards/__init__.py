"""Rewards: whole rewards, their terms and their length scores; see `pixelthink.rewards.base`."""
