"""The training loop: one optimiser step, reduction, evaluation, checkpoints."""
