"""Authoring of plugins: new folders, files generated from cards, and moves between the tiers."""
