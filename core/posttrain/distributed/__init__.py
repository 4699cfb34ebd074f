"""Hardware strategies: how one optimiser step is spread over devices."""
