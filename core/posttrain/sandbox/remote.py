"""A sandbox on another machine: a server of SandboxFusion, which runs one program and returns its output.

Such a server runs one process, so it cannot keep a program and its tests apart. So tests are accepted only where the
expected values need not be sent: pairs of input and output, and assertions that compare a call of plain values with a
plain value, of which the server gets the calls alone.
"""

from __future__ import annotations

import ast
import functools
import json
import os
from typing import Any

from posttrain.errors import DataError, RunFailed, short
from posttrain.sandbox.grade import Grade, LocalSandbox, Sandbox, ended, grade_pairs
from posttrain.sandbox.limits import Limits, Outcome
from posttrain.sandbox.program_tests import ProgramTests
from posttrain.servers.endpoint import Endpoint, Refused, Unreachable, split_address
from posttrain.servers.listener import TOKEN

LOCAL = "bubblewrap"


@functools.lru_cache(maxsize=4)
def find_sandbox(name: str) -> Sandbox:
    """Return this machine's sandbox ``bubblewrap``, or the one at an address. Raises DependencyError, SettingsError."""
    return LocalSandbox() if name == LOCAL else RemoteSandbox(name)


class RemoteSandbox:
    """The server at ``http://HOST:PORT``; each question carries the environment's token."""

    def __init__(self, address: str):
        self.url, _ = split_address(address, "sandbox")

    def run(self, program: str, stdin: str, limits: Limits) -> Outcome:
        """Run a program. Raises RunFailed where the server does not."""
        asked = {
            **{"language": "python", "code": program, "stdin": stdin, "run_timeout": limits.seconds},
            **{"memory_limit_MB": limits.memory_mb, "compile_timeout": limits.seconds},
        }
        endpoint = Endpoint(self.url, os.environ.get(TOKEN), timeout=limits.seconds + 60)
        try:
            found = endpoint.post("/run_code", asked)
        except (Refused, Unreachable) as error:
            raise RunFailed(f"The sandbox at {self.url} runs no program: {error}.") from None
        ran = found.get("run_result") if isinstance(found, dict) else None
        if not isinstance(ran, dict) or found.get("status") == "SandboxError":
            raise RunFailed(
                f"The sandbox at {self.url} answered {short(found, 200)}, expected 'run_result' as SandboxFusion has."
            )
        output, errors = str(ran.get("stdout") or ""), str(ran.get("stderr") or "")
        if ran.get("status") == "TimeLimitExceeded":
            return Outcome("time", -9, output, errors)
        if len(output) + len(errors) > limits.output_bytes:
            return Outcome("output", -9, output[: limits.output_bytes], "")
        code = ran.get("return_code")
        return Outcome("exited", code if isinstance(code, int) else 1, output, errors)

    def grade(self, program: str, tests: ProgramTests, limits: Limits) -> Grade:
        """Run a program by its tests. Raises DataError for tests that cannot be kept apart there."""
        if tests.kind == "pairs":
            return grade_pairs(lambda stdin: self.run(program, stdin, limits), tests, limits)
        calls = plain_calls(tests)
        outcome = self.run(program + _CALLS.format(calls=json.dumps([call for call, _ in calls])), "", limits)
        if outcome.end != "exited":
            return Grade(0, len(calls), ended(outcome.end, limits))
        said = outcome.output.splitlines()[-len(calls) :]
        passed, text = 0, "" if len(said) == len(calls) else outcome.errors[-2000:]
        for (call, expected), line in zip(calls, said, strict=False):
            if len(said) == len(calls) and _same(line, expected):
                passed += 1
            else:
                text = text or f"assert {call} == {expected!r}\n  {call} returned {line[:500]}"
        return Grade(
            passed, len(calls), text or ("" if passed == len(calls) else "the program has ended before its tests")
        )


#: Appended to a program: prints each call's result in Python's notation, or the error, on a separate line.
_CALLS = """

def _posttrain_say(call):
    try:
        return repr(eval(call, globals()))
    except BaseException as error:
        return f"!{{type(error).__name__}}: {{error}}"
print("", *[_posttrain_say(call).replace("\\n", " ") for call in {calls}], sep="\\n")
"""


def plain_calls(tests: ProgramTests) -> list[tuple[str, Any]]:
    """Parse the assertions as (call, expected value). Raises DataError for one that is more than such a comparison."""
    calls = []
    for statement in ast.parse(tests.source).body if tests.kind == "asserts" else [None]:
        match statement:
            case ast.Assert(test=ast.Compare(left=ast.Call() as call, ops=[ast.Eq()], comparators=[expected])):
                try:
                    for value in (*call.args, *(one.value for one in call.keywords)):
                        ast.literal_eval(value)
                    calls.append((ast.unparse(call), ast.literal_eval(expected)))
                    continue
                except ValueError:
                    pass
        shown = short(ast.unparse(statement) if statement else tests.source)
        raise DataError(
            f"The test {shown} cannot be kept apart from the program on a server that runs one process. Expected pairs "
            "of input and output, or assert FUNCTION(PLAIN VALUES) == PLAIN VALUE; all kinds run here (sandbox="
            f"{LOCAL}), and on a machine where posttrain serve-rewards code runs (--reward http://HOST:PORT)."
        )
    return calls


def _same(said: str, expected: Any) -> bool:
    try:
        return bool(ast.literal_eval(said) == expected)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
