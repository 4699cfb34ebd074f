"""The roles of a run on several machines: trainer, rollout servers, reward workers. Ray places them."""
