"""Golden files: numbers computed elsewhere, read, arranged as batches, and compared with methods' results."""
