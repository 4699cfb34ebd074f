"""Seeds of everything that is sampled, from the run's seed and a place alone."""

from __future__ import annotations

import hashlib
from typing import Any


def seed_of(*parts: Any) -> int:
    """Derive a seed from the run's seed and a place alone, the same on every machine (G7)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")
