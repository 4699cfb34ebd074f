"""Runs on a tiny model, and what compares two of them."""

from ..training.conftest import train  # noqa: F401  a fixture
