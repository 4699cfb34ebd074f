"""Writer of TOML, which the standard library only reads."""

from __future__ import annotations

import json
import re
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dumps(values: dict[str, Any]) -> str:
    """Return ``values`` as TOML, tables in the given order; comments are not in ``values`` and so are lost."""
    return "\n".join(_table(values, [])).strip() + "\n"


def _table(values: dict[str, Any], path: list[str]) -> list[str]:
    simple = {key: value for key, value in values.items() if not isinstance(value, dict)}
    lines = [f"[{'.'.join(map(_key, path))}]"] if path and (simple or not values) else []
    lines += [f"{_key(key)} = {_value(value)}" for key, value in simple.items()]
    if lines:
        lines.append("")
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _table(value, [*path, key])
    return lines


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else json.dumps(key, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        items = [_value(item) for item in value]
        short = f"[{', '.join(items)}]"
        return short if len(short) < 90 else "[\n" + "".join(f"    {item},\n" for item in items) + "]"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
