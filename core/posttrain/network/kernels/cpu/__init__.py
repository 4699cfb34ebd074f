"""Replacements that pay on processors; each is compared with the original before use."""
