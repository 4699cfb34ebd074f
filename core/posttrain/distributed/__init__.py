"""Strategies that distribute one optimiser step over devices."""
