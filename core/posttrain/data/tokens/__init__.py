"""Tokenisation of checked rows into arrays: templates, tokens, truncation, storage, cache."""
