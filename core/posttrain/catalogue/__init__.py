"""Catalogue of installed and known methods and their cards; no method is imported for it."""
