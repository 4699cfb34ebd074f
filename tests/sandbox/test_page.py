"""The page about programs names every attempt, every option and every limit as the code has them."""

import inspect
import re
from pathlib import Path

from posttrain.rewards.code import code
from posttrain.sandbox.limits import Limits
from posttrain.sandbox.program_tests import ProgramTests

from .attempts import GREEDY, HARMFUL, REAL
from .test_tampering import ATTEMPTS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "code-rewards.md").read_text()
KINDS = {
    "Reaching out, and reaching out of other programs too": REAL,
    "Reaching out, with rights or by force": HARMFUL,
    "Taking more than its share": GREEDY,
    "Getting a reward that was not earned": ATTEMPTS,
}


def lines():
    return [f"- {kind} ({len(names)}): {', '.join(f'`{name}`' for name in names)}" for kind, names in KINDS.items()]


def test_the_list_of_attempts_is_published():
    assert PAGE.split("<!-- attempts -->\n")[1].strip() == "\n".join(lines()), "\n".join(lines())


def test_options_and_their_defaults():
    found = dict(re.findall(r"(?m)^\| `code\.(\w+)` \[([^]]+)\]", PAGE))
    parameters = inspect.signature(code).parameters
    assert set(found) == {name for name in parameters if name not in ("completions", "tests", "entry_point", "partial")}
    for name, shown in found.items():
        if name != "workers":
            assert str(parameters[name].default).removesuffix(".0") == shown
    assert (Limits().seconds, Limits().memory_mb, Limits().processes) == tuple(
        parameters[name].default for name in ("seconds", "memory_mb", "processes")
    )
    assert "64 MiB" in PAGE
    assert Limits().disk_mb == 64
    assert Limits().output_bytes == 1 << 20


def test_tests_of_the_table_are_read_as_it_says():
    assert ProgramTests.of('[{"input": "2\\n", "output": "4\\n"}]').kind == "pairs"
    assert ProgramTests.of('{"inputs": ["a"], "outputs": ["b"]}').kind == "pairs"
    assert ProgramTests.of("def check(candidate):\n    assert candidate(1)", "f").kind == "asserts"
