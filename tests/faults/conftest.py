"""Runs on a tiny model, and what compares two of them."""

from ..engine.conftest import train  # noqa: F401  a fixture
