"""Hardware strategies: how one optimiser step is spread over devices. One small file each, behind one protocol."""
