"""Processes at both ends of the bridge: the program's and the tests'. Run in sandboxes, without posttrain.

This file is appended to ``bridge.py`` there, without the import of it.
"""

import builtins
import json
import os
import sys
import types
from typing import Any

from posttrain.sandbox.bridge import LONGEST, Ended, Line, Peer, Remote, text_of


def serve_program() -> None:
    """Run the program as the module ``solution`` and answer requests for it. Its prints go to its error output."""
    line = Line(os.dup(0), os.dup(1))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    peer = Peer(line, serves=True)
    module = sys.modules["solution"] = types.ModuleType("solution")
    with open("program.py", encoding="utf-8", errors="surrogatepass") as file:
        source = file.read()

    def load() -> None:
        exec(compile(source, "program.py", "exec"), module.__dict__)

    def names() -> list[Any]:
        load()
        return [[name, _kind(value), value] for name, value in list(vars(module).items()) if _is_own(name, value)]

    peer.do_names = names  # type: ignore[attr-defined]
    try:
        while True:
            _, *asked = line.receive()
            peer.answer(*asked)
    except Ended:
        return


def _is_own(name: str, value: Any) -> bool:
    foreign = callable(value) and getattr(value, "__module__", None) != "solution"
    return not (name.startswith("__") or isinstance(value, types.ModuleType) or foreign)


def _kind(value: Any) -> list[str]:
    """Return the names of a class's base exceptions; nothing for anything else."""
    is_error = isinstance(value, type) and issubclass(value, Exception)
    return [one.__name__ for one in value.__mro__[1:]] if is_error else []


class Verdict:
    """Results of the tests, one JSON line each, on an output that no other code has."""

    def __init__(self, number: int):
        self.file = os.fdopen(number, "w")

    def write(self, **facts: Any) -> None:
        """Add a line."""
        self.file.write(json.dumps(facts) + "\n")
        self.file.flush()


def run_tests(reads: int, writes: int, kind: str, entry_point: str) -> None:
    """Run the tests against the program at the other end of the bridge."""
    verdict = Verdict(os.dup(1))
    os.dup2(2, 1)
    peer = Peer(Line(reads, writes), serves=False)
    with open("tests.py", encoding="utf-8") as file:
        source = file.read()
    if kind == "asserts":
        run, total = _asserts(peer, source, entry_point)
        verdict.write(total=total)
    try:
        _offer(peer, source, entry_point)
    except Exception as error:
        verdict.write(ok=False, text=f"The program does not run: {_shown(error)}")
        return
    if kind == "asserts":
        run(verdict)
    else:
        _pytest(verdict)


def _offer(peer: Peer, source: str, entry_point: str) -> None:
    """Make the program's names those of the module ``solution``, and visible to tests that do not import them.

    A name that Python already has (``abs``, ``math``) is not taken from the program, unless it is the entry point.
    """
    import re

    module = sys.modules["solution"] = types.ModuleType("solution")
    mentioned = set(re.findall(r"\w+", source)) | {entry_point}
    for name, bases, value in peer.ask("names"):
        if bases:
            base: Any = next((getattr(builtins, one) for one in bases if hasattr(builtins, one)), Exception)
            value = peer.classes[name] = type(name, (base,), {"__module__": "solution"})
        elif isinstance(value, Remote):
            value.__dict__["_name"] = name
        setattr(module, name, value)
        known = hasattr(builtins, name) or name in sys.stdlib_module_names or name == "pytest"
        if name in mentioned and (not known or name == entry_point):
            setattr(builtins, name, value)


def _asserts(peer: Peer, source: str, entry_point: str) -> tuple[Any, int]:
    """Return a function that runs plain statements, and their count: asserts, or calls where there are none."""
    import ast

    if entry_point and "def check(" in source:
        source += f"\ncheck({entry_point})\n"
    statements = ast.parse(source).body
    counted = [isinstance(one, ast.Assert) for one in statements]
    if not any(counted):
        counted = [isinstance(one, ast.Expr) and isinstance(one.value, ast.Call) for one in statements]

    def run(verdict: Verdict) -> None:
        space: dict[str, Any] = {"__name__": "tests"}
        for statement, counts in zip(statements, counted, strict=True):
            peer.last = ""
            try:
                exec(compile(ast.Module([statement], []), "tests.py", "exec"), space)
            except BaseException as error:
                reason = peer.last if isinstance(error, AssertionError) and peer.last else _shown(error)
                text = f"{ast.unparse(statement)[:LONGEST]}\n  {reason}"
                verdict.write(**({"ok": False} if counts else {"broken": True}), text=text)
                if isinstance(error, Ended):
                    return
            else:
                if counts:
                    verdict.write(ok=True)

    return run, sum(counted)


def _pytest(verdict: Verdict) -> None:
    import pytest

    class Recorder:
        """Counts tests; skipped ones do not count."""

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                verdict.write(ok=False, text=report.longreprtext[-LONGEST:])
            elif report.when == "call" and report.passed:
                verdict.write(ok=True)

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                verdict.write(broken=True, text=report.longreprtext[-LONGEST:])

        def pytest_collection_finish(self, session: Any) -> None:
            verdict.write(total=len(session.items))

    pytest.main(["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir=.", "tests.py"], plugins=[Recorder()])


def _shown(error: BaseException) -> str:
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


if __name__ == "__main__":
    if sys.argv[1] == "program":
        serve_program()
    else:
        run_tests(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
