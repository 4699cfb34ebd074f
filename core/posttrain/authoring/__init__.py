"""Writing plugins: new folders, everything that is generated from cards, and moves between the tiers."""
