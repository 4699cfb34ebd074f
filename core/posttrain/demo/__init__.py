"""A demonstration that fits into a coffee break: ``python -m posttrain.demo`` trains a small model from scratch."""
