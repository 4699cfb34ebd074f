"""Golden files: numbers worked out elsewhere, read, laid out as batches, and compared with what methods return."""
