"""Online runs: from prompts to examples with advantages."""
