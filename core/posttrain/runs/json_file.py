"""Reading of JSON files and JSON lines: a damaged one is an error that names the file, its fault and what helps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from posttrain.errors import CheckpointError, PosttrainError, short


class Damaged(ValueError):
    """A text that is no JSON object; its message continues a sentence that begins with the file."""


def parse_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object from UTF-8. Raises Damaged for anything else."""
    try:
        found = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise Damaged("is not text in UTF-8") from None
    except RecursionError:
        raise Damaged("is nested too deep") from None
    except ValueError as error:
        raise Damaged(f"is not valid JSON ({error})" if text.strip() else "is empty") from None
    if not isinstance(found, dict):
        raise Damaged(f"holds {short(found)}, expected a JSON object")
    return found


def read_object(file: Path, kind: type[PosttrainError], advice: str) -> dict[str, Any]:
    """Read a file with one JSON object. Raises ``kind`` with the file, its fault and ``advice``."""
    try:
        return parse_object(file.read_bytes())
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    except Damaged as error:
        fault = str(error)
    raise kind(f"'{file}' {fault}. {advice}")


def read_lines(file: Path, check: Callable[[dict[str, Any]], str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line of a JSON lines file, as text and parsed; none where there is no file.

    A last line without its end, which a killed run leaves, is passed over. Raises CheckpointError for any other line
    that is no JSON object, or of which ``check`` returns a fault.
    """
    if not os.path.lexists(file):
        return
    try:
        *lines, rest = file.read_bytes().split(b"\n")
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read ({error.strerror}). Move it away, or restore it.") from None
    for number, line in enumerate(lines if is_half(rest) else [*lines, rest], 1):
        if line.strip():
            yield line.decode("utf-8", "replace"), parse_line(file, number, line, check)


def is_half(rest: bytes) -> bool:
    """Return whether what stands behind the last line break may be the beginning of a line that a kill has cut."""
    return rest.lstrip(b"\0")[:1] in (b"{", b"")


def parse_line(file: Path, number: int, line: bytes, check: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """Parse a whole line of a JSON lines file. Raises CheckpointError as ``read_lines``."""
    try:
        found = parse_object(line)
        fault = check(found)
    except Damaged as error:
        fault = str(error)
    if fault:
        raise CheckpointError(f"'{file}' line {number} {fault}. Delete that line, or move the file away.")
    return found


def metrics_fault(line: dict[str, Any]) -> str:
    """Return what is wrong with a line that has a step; empty where nothing is."""
    if type(line.get("step")) is not int:
        return f"has {short(line.get('step'))} as its step, expected a whole number"
    for name in ("seconds", "tokens", "peak_memory_mb"):
        if type(line.get(name)) not in (int, float, type(None)):
            return f"has {short(line[name])} as its {name}, expected a number"
    return ""


def event_fault(line: dict[str, Any]) -> str:
    """Return what is wrong with a line of events.jsonl; empty where nothing is."""
    is_alert = line.get("kind") == "alert"
    for name in ("code", "message", *(("severity", "suggestion") if is_alert else ())):
        if not isinstance(line.get(name), str):
            return f"has {short(line.get(name))} as its {name}, expected a text"
    evidence = line.get("evidence")
    numbered = is_alert or line["code"] in ("started", "evaluation")
    if numbered and not (isinstance(evidence, dict) and type(evidence.get("step", 0)) is int):
        return f"has {short(evidence)} as its evidence, expected an object with a whole number as its step"
    return ""
