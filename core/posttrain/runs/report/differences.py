"""Differences between the configurations of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Options about a run's folder and display, which do not affect training.
_PLACES = {"output", "overwrite", "progress", "log_every", "observers", "track", "report", "show_completion"}


def flat_configuration(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Collect from run.json what affects a run's numbers: method, options, data, versions, devices."""
    settings = {name: value for name, value in (facts.get("settings") or {}).items() if name not in _PLACES}
    own = dict(facts.get("options") or {})
    found = {"method": facts.get("method"), "total_steps": facts.get("total_steps")} | settings | own
    modifiers = [f"{one.get('name')} {one.get('version')}" for one in facts.get("modifiers") or []]
    found |= {"modifiers": modifiers or None} if modifiers else {}
    found |= {f"version of {name}": value for name, value in (facts.get("versions") or {}).items()}
    hardware = facts.get("hardware") or {}
    code = facts.get("code") or {}
    return found | {"gpus": hardware.get("gpus"), "threads": hardware.get("threads"), "commit": code.get("commit")}


def differences(configurations: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """List what differs between configurations: ``[name, value of each]``; None where a run has no such option."""
    names = dict.fromkeys(name for one in configurations for name in one)
    rows = [[name, *(one.get(name) for one in configurations)] for name in names]
    return [row for row in rows if any(value != row[1] for value in row[2:])]
