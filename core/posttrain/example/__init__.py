"""A short demonstration: ``python -m posttrain.example`` trains a small model from scratch."""
