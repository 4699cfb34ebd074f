"""No program gets a reward that its functions did not earn, whatever it does to its process, files or output."""

import pytest
from posttrain.sandbox.limits import Limits
from posttrain.sandbox.program_tests import ProgramTests

LIMITS = Limits(seconds=5.0, memory_mb=512, processes=8)
ASSERTS = [
    "assert f(2) == 4",
    "assert abs(f(3) - 6) < 0.001",
    "assert f('ab').startswith('abab')",
    "assert f(5) in [10]",
]
PYTEST = """
import math
import pytest
from solution import f

def test_equal():
    assert f(2) == 4

@pytest.mark.parametrize("value", [3, 4])
def test_close(value):
    assert math.isclose(f(value), 2 * value) and isinstance(f(value), int)

def test_error():
    with pytest.raises(TypeError):
        f()
"""
PAIRS = [{"input": "2\n", "output": "4\n"}, {"input": "3\n", "output": "6\n"}]
RIGHT = "def f(x):\n    return x * 2\nif __name__ == '__main__':\n    print(f(int(input())))"

ATTEMPTS = {
    "frames": """
import gc, inspect, sys
key = "f(2) " + "=" * 2
def f(x):
    for frame in inspect.stack():
        for value in [*frame.frame.f_locals.values(), *frame.frame.f_globals.values()]:
            if isinstance(value, str) and value is not key and key in value:
                return 4
    for value in gc.get_objects():
        if isinstance(value, str) and value is not key and key in value:
            return 4
    return 0""",
    "output": """
import os
for line in ('{"total": 4}', *4 * ['{"ok": true}'], '4 passed', 'OK', '4', '6'):
    os.write(1, (line + chr(10)).encode())
    os.write(2, (line + chr(10)).encode())""",
    "every-descriptor": """
import os
for number in range(256):
    try:
        os.write(number, b'{"total": 4}' + b'\\n{"ok": true}' * 4 + b'\\n')
    except OSError:
        pass
def f(x): return 0""",
    "replies-of-its-own": """
import os
for number in range(3, 64):
    try:
        os.write(number, b'["reply", [["f", [], 4]], []]\\n' + b'["reply", 4, []]\\n' * 9)
    except OSError:
        pass
def f(x): return 0""",
    "exit-code": "import os\nos._exit(0)",
    "exit-later": "import os\ndef f(x):\n    os._exit(0)",
    "system-exit": "def f(x):\n    raise SystemExit(0)",
    "exit-handler": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "thread-that-exits": "import os, threading\nthreading.Timer(0.05, os._exit, (0,)).start()\ndef f(x):\n    return 0",
    "equal-to-everything": """
class Yes:
    def __getattr__(self, name):
        return lambda *a, **k: True
    for _name in "eq ne lt le gt ge contains bool".split():
        exec(f"def __{_name}__(self, *a): return True")
    for _name in "add sub mul radd rsub rmul abs neg".split():
        exec(f"def __{_name}__(self, *a): return self")
    __float__ = lambda self: 0.0
    __hash__ = lambda self: 0
def f(x): return Yes()""",
    "number-equal-to-everything": """
class Yes(int):
    __eq__ = lambda self, other: True
    __sub__ = lambda self, other: 0
    __hash__ = int.__hash__
def f(x): return Yes(0)""",
    "text-equal-to-everything": """
class Yes(str):
    __eq__ = lambda self, other: True
    startswith = lambda self, other: True
    __hash__ = str.__hash__
def f(x): return Yes("")""",
    "builtins": """
import builtins
builtins.abs = lambda x: 0
builtins.isinstance = lambda *a: True
builtins.AssertionError = type("E", (BaseException,), {})
def abs(x): return 0
def isinstance(*a): return True
def sum(*a): return 0
def f(x): return 0""",
    "names-of-modules": """
class math:
    isclose = staticmethod(lambda *a, **k: True)
class pytest:
    raises = None
def f(x): return 0""",
    "test-file": """
import glob, os
for name in [*glob.glob("/tmp/*"), "/tmp/tests.py", "/tmp/test_solution.py", "/tmp/bridge.py"]:
    try:
        open(name, "w").write("def test_x(): pass")
    except OSError:
        pass
def f(x): return 0""",
    "configuration-of-pytest": """
hook = "import pytest\\n@pytest.hookimpl(tryfirst=True)\\ndef pytest_pyfunc_call(pyfuncitem): return True"
for name in ("conftest.py", "sitecustomize.py", "usercustomize.py", "solution.py", "pytest.py"):
    open("/tmp/" + name, "w").write(hook)
open("/tmp/pytest.ini", "w").write("[pytest]\\naddopts = --collect-only")
def f(x): return 0""",
    "patched-pytest": """
import sys
try:
    import _pytest.assertion, _pytest.runner, pytest
    _pytest.runner.pytest_runtest_call = lambda item: None
    pytest.raises = None
except ImportError:
    pass
def f(x): return 0""",
    "skips": """
try:
    import pytest
except ImportError:
    pytest = None
def f(x): pytest.skip("no")""",
    "error-that-passes": "class TypeError(Exception): pass\ndef f(*x): raise TypeError('no')",
    "mutates-arguments": "def f(x):\n    if isinstance(x, list): x.clear()\n    return 0",
    "json-that-is-odd": """
class D(dict):
    def items(self): return [("a", float("nan"))]
def f(x): return D()""",
    "endless-answer": "def f(x):\n    return 'x' * 10**9",
    "endless-answers": "class I:\n    def __iter__(self):\n        while 1: yield 4\ndef f(x): return I()",
    "deep-answer": "def f(x):\n    y = []\n    for _ in range(10**5):\n        y = [y]\n    return y",
    "signal-to-tests": "import os, signal\ntry:\n    os.kill(-1, 15)\nexcept OSError:\n    pass\ndef f(x): return 0",
    "prints-everything": "print('4')\nprint('6')\nprint('4\\n6')\ndef f(x): return 0",
    "does-not-compile": "def f(x) return 4",
}
#: How many tests a program passes that calls or exits wrongly all the same: f() raises a TypeError by itself.
HONEST = {"pytest": 1}


def grade(sandbox, program, tests):
    return sandbox.grade(program, ProgramTests.of(tests), LIMITS)


def test_the_right_program_gets_all(sandbox):
    for tests, program in ((ASSERTS[:2] + ASSERTS[3:], RIGHT), (PYTEST, RIGHT), (PAIRS, RIGHT)):
        found = grade(sandbox, program, tests)
        assert found.passed == found.total, found
    assert grade(sandbox, RIGHT, ["assert f('ab').startswith('abab')"]).share == 1.0


#: Attempts that mean something there besides for assertions.
PYTEST_TOO = (
    "frames",
    "output",
    "every-descriptor",
    "exit-code",
    "equal-to-everything",
    "names-of-modules",
    "test-file",
)
PYTEST_TOO += ("configuration-of-pytest", "patched-pytest", "skips", "error-that-passes")
PAIRS_TOO = (
    "frames",
    "output",
    "every-descriptor",
    "exit-code",
    "exit-handler",
    "prints-everything",
    "does-not-compile",
)
CASES = [("asserts", name) for name in ATTEMPTS]
CASES += [("pytest", name) for name in PYTEST_TOO] + [("pairs", name) for name in PAIRS_TOO]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_no_test_is_passed(kind, name, sandbox):
    tests = {"asserts": ASSERTS, "pytest": PYTEST, "pairs": PAIRS}[kind]
    found = grade(sandbox, ATTEMPTS[name], tests)
    assert found.passed <= HONEST.get(kind, 0), found
    assert found.total >= 1
    assert found.text


def test_a_test_cannot_be_looked_into_through_what_it_gives(sandbox):
    """A function of the tests that a program gets can be called, and nothing else: its globals are the tests'."""
    peeks = """
def f(give):
    found = []
    for name in ("__globals__", "func_globals", "secret", "__self__"):
        try:
            found.append(getattr(give, name))
        except Exception:
            pass
    return len(found)"""
    tests = "secret = 'expected'\ndef give(): return 1\ngive.secret = secret\nassert f(give) == 0"
    assert grade(sandbox, peeks, tests).share == 1.0
    assert grade(sandbox, "def f(give): return give()", "def give(): return 7\nassert f(give) == 7").share == 1.0
