"""Models: loading, adapters, the reference, saving."""
