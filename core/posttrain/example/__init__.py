"""A demonstration that fits into a coffee break: ``python -m posttrain.example`` trains a small model from scratch."""
