"""Several processes: what they add up, how a model is sharded over them, and how they notice that one is gone."""
