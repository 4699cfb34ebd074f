"""The engine: forward pass, reduction, one optimiser step, and the loop around it."""
