"""Faster or smaller replacements of modules and operations."""
