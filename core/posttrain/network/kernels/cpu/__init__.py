"""Replacements for CPUs; each is compared with the original before use."""
