"""Methods on images and experts: what the page says was measured, of every method, and nothing in it is wrong."""

import json
from pathlib import Path

import pytest
from posttrain.catalogue.discovery import installed

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
TABLE = json.loads((RESULTS / "families.json").read_text(encoding="utf-8"))
METHODS = {"sft", "dpo", "reward", "grpo", "rloo"}


@pytest.mark.parametrize("family", ["vision", "experts"])
def test_every_method_was_checked(family):
    kit = json.loads((RESULTS / f"kit_{family}.json").read_text(encoding="utf-8"))
    assert {row.name for row in installed()} == set(kit)
    failed = {name: one["failed"] for name, one in kit.items() if "failed" in one}
    for name, checks in failed.items():
        for check, what in checks.items():
            (line,) = [one for one in PAGE.splitlines() if one.startswith(f"- `{name}` on ") and what in one]
            assert f"`{check}`" in line


def test_every_stable_method_was_measured_and_is_within_its_bounds():
    assert len(TABLE) >= 3
    for family, methods in TABLE.items():
        assert set(methods) == METHODS, family
        for method, found in methods.items():
            assert found["resumed"], (family, method)
            assert found["cut"] <= 1e-6, (family, method)
            assert max(found["ddp"], found["fsdp"]) <= 1e-5, (family, method)
            assert f"| `{family}` | {method} | " in PAGE
