"""What a row's tests may look like, and how programs are graded by them."""

import json
import re
import time

import pytest
from posttrain.environments.code import Code
from posttrain.errors import DataError, SettingsError
from posttrain.rewards import load_rewards, score
from posttrain.rewards.code import code
from posttrain.sandbox.grade import grade_all, lines_of, program_in
from posttrain.sandbox.limits import Limits
from posttrain.sandbox.program_tests import ProgramTests
from posttrain_testkit.environments import check_environment

LIMITS = Limits(seconds=5.0)
CLASSES = """
class Stack:
    def __init__(self, *items): self.items = list(items)
    def push(self, item): self.items.append(item)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __contains__(self, item): return item in self.items
    def __add__(self, other): return Stack(*self.items, *other.items)
    def __eq__(self, other): return self.items == other.items
class Node:
    def __init__(self, value, next=None): self.value, self.next = value, next
class TooFew(LookupError): pass
def chain(values):
    return Node(values[0], chain(values[1:])) if values else None
def sort(values): values.sort()
def count(n):
    yield from range(n)
def twice(function, value): return function(function(value))
def first(values):
    if not values: raise TooFew("none")
    return values[0]
def adder(n): return lambda x: x + n
LIMIT = 7
"""
USES = [
    "stack = Stack(1)\nstack.push(3)\nassert len(stack) == 2 and 3 in stack and stack.pop() == 3",
    "assert Stack(1) + Stack(2) == Stack(1, 2)",
    "assert isinstance(Stack(), Stack) and not isinstance(3, Stack)",
    "assert chain([1, 2]).next.value == 2 and chain([]) is None",
    "values = [3, 1, 2]\nsort(values)\nassert values == [1, 2, 3]",
    "assert list(count(3)) == [0, 1, 2] and sum(count(4)) == 6",
    "assert twice(lambda x: x * 3, 2) == 18",
    "try:\n    first([])\n    found = None\nexcept TooFew as error:\n    found = str(error)\nassert found == 'none'",
    "assert adder(3)(4) == 7 and LIMIT == 7",
    "from solution import Stack as S\nassert S(5).items[0] == 5",
]


@pytest.mark.parametrize("tests", USES)
def test_what_tests_do_with_a_program_works_across_the_line(tests, sandbox):
    assert sandbox.grade(CLASSES, ProgramTests.of(tests), LIMITS).share == 1.0


@pytest.mark.parametrize(
    "value",
    [
        "1",
        "1.5",
        "float('inf')",
        "'ü\\n'",
        "b'\\x00'",
        "None",
        "True",
        "2j",
        "10**40",
        "(1, [2])",
        "{1, 2}",
        "{1: (2,)}",
    ],
)
def test_data_come_across_as_they_are(value, sandbox):
    tests = f"assert same({value}) == {value} and type(same({value})) is type({value})"
    assert sandbox.grade("def same(x):\n    return x", ProgramTests.of(tests), LIMITS).share == 1.0


def test_shares_and_what_is_told(sandbox):
    program = "import sys\ndef f(x):\n    print('called')\n    return x + 1"
    found = sandbox.grade(program, ProgramTests.of(["assert f(1) == 2", "assert f(1) == 3", "assert g(1)"]), LIMITS)
    assert (found.passed, found.total) == (1, 3)
    assert found.text.startswith("assert f(1) == 3\n  f(1) returned 2\nprinted: called")
    pairs = [{"input": "1 2", "output": "3\n"}, {"input": "2 2", "output": "5"}, {"input": "x", "output": ""}]
    found = sandbox.grade("print(sum(map(int, input().split())))", ProgramTests.of(pairs), LIMITS)
    assert (found.passed, found.total) == (1, 3)
    assert found.text == "input '2 2': expected '5', the program wrote '4\\n'"
    slow = sandbox.grade("while True: pass", ProgramTests.of(pairs), Limits(seconds=0.7))
    assert (slow.passed, slow.text) == (0, "input '1 2': not finished after 0.7 seconds")
    slow = sandbox.grade(
        "def f(x):\n    while x: pass", ProgramTests.of(["assert f(0) is None", "assert f(1)"]), Limits(0.9)
    )
    assert (slow.passed, slow.total, slow.text) == (1, 2, "not finished after 0.9 seconds")
    broken = sandbox.grade("def f(x): return 1", ProgramTests.of("value = g()\nassert f(0) == 1"), LIMITS)
    assert (broken.passed, broken.total) == (1, 2)  # a statement between the assertions raised
    human = ProgramTests.of("def check(candidate):\n    assert candidate(2) == 4", "f")
    assert sandbox.grade("def f(x): return x * 2", human, LIMITS).share == 1.0
    assert sandbox.grade("def f(x): return x", human, LIMITS).share == 0.0


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([{"input": "a", "output": "b"}], "pairs"),
        ({"inputs": ["a", "b"], "outputs": ["c", "d"]}, "pairs"),
        (json.dumps([{"stdin": "a", "expected_output": "b"}]), "pairs"),
        (json.dumps(["assert f(1)"]), "asserts"),
        ("x = 1\nassert f(x)", "asserts"),
        ("def test_f():\n    assert f(1)", "pytest"),
    ],
)
def test_forms_of_tests(value, kind):
    assert ProgramTests.of(value).kind == kind


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "tests are 3. Expected a list of"),
        ([], r"tests are \[\]"),
        ("  ", "tests are '  '"),
        ("assert f(", "which is no Python: '\\(' was never closed"),
        ("x = 1", "in which nothing is asserted"),
        ("[" * 5000, "tests are"),
        ([{"input": 1, "output": "a"}], "with 1 as its 'input'"),
        ([{"input": "a"}], "with None as its 'output'"),
        ({"inputs": ["a"], "outputs": ["c", "d"]}, "whose lists differ in length"),
        ("assert f(1)\x00", "which is no Python"),
    ],
)
def test_tests_of_another_form_are_refused_in_one_line(value, text):
    with pytest.raises(DataError, match=text) as found:
        ProgramTests.of(value)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 600


def test_the_program_is_the_last_block():
    assert program_in("x\n```python\na\n```\ny\n```py\nb\n```\n```text\nc\n```") == "b\n"
    assert program_in("```\na\n```") == "a\n"
    assert program_in("```python\nnever closed") == "never closed"
    assert program_in("print(1)") == "print(1)"
    assert lines_of("a  \nb\n\n") == lines_of("a\nb")


def test_many_programs_at_once_come_back_in_their_order(sandbox):
    tests = ProgramTests.of("assert f() == 3")
    jobs = [(f"import time\ntime.sleep(0.4)\ndef f(): return {number % 4}", tests) for number in range(8)]
    start = time.monotonic()
    assert [one.passed for one in grade_all(sandbox, jobs, LIMITS, 8)] == [0, 0, 0, 1] * 2
    assert time.monotonic() - start < 8 * 0.4  # one after the other take longer than their pauses alone


def test_the_reward(sandbox):
    right = "Here it is:\n```python\ndef f(x):\n    return x * 2\n```"
    tests = [["assert f(1) == 2", "assert f(2) == 4"], ["assert f(1) == 2", "assert f(2) == 5"], None]
    scores, columns = code([right] * 3, tests)
    assert scores == [1.0, 0.5, None]
    assert columns["feedback"] == ["", "assert f(2) == 5\n  f(2) returned 4", ""]
    assert code([right] * 2, tests[:2], partial=False)[0] == [1.0, 0.0]
    (loaded,) = load_rewards([code], {"code.seconds": "2", "code.partial": "false"})
    total, _ = score([loaded], ["p"] * 2, [right] * 2, {"tests": tests[:2]}, remarks := {})
    assert total.tolist() == [1.0, 0.0]
    assert remarks["feedback"][1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"seconds": 0.0}, "seconds is 0, expected a number above 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"memory_mb": 1}, "memory_mb is 1, expected 64 or more"),
        ({"processes": 1}, "processes is 1, expected 4 or more"),
        ({"workers": 0}, "has workers 0, expected 1 or more"),
        ({"sandbox": "docker"}, "'docker' is no address"),
    ],
)
def test_options_of_the_reward_are_checked(options, text):
    with pytest.raises(SettingsError, match=text):
        code(["a"], ["assert f()"], **options)


def test_the_environment_runs_a_program_and_says_what_failed(sandbox):
    row = Code.rows(1, 0)[0]
    game = Code()
    game.reset({"prompt": [], "tests": ["assert f([1]) == 2", "assert f([]) == 0"]}, 0)

    def says(program):
        return game.step({"role": "assistant", "content": f"```python\n{program}\n```"})

    first = says("def f(x): return 0")
    assert not first.done
    assert first.messages == (
        "1 of 2 tests passed. The first that failed:\nassert f([1]) == 2\n  f([1]) returned 0\nTry again."
    )
    assert game.reward({"content": "```python\ndef f(x): return 0\n```"}) == 0.5
    last = says("def f(x): return sum(x) * 2")
    assert (last.reward, last.done) == (1.0, True)
    assert len(row["tests"]) == 4


def test_the_environment_keeps_what_environments_promise(sandbox):
    assert check_environment(Code)["rows"] == 3
    assert Code.rows(5, 1) != Code.rows(5, 2)


def test_every_task_of_the_environment_can_be_solved(sandbox):
    programs = {
        "sum": "return sum(i for i in x if i > n)",
        "often": "return x.count(n)",
        "times": "return [i * n for i in x]",
        "divides": "return [i for i in x if i % n != 0]",
        "largest": "return max(x) if x else n",
        "first": "return list(reversed(x[:n]))",
        "sorted": "return sorted(set(i for i in x if i >= n))",
        "neighbours": "return any(abs(x[i] - x[i + 1]) == n for i in range(len(x) - 1))",
    }
    solved = set()
    for row in Code.rows(60, 0):
        ask = row["prompt"][0]["content"]
        (kind,) = [name for name in programs if name in re.findall(r"\w+", ask)]
        if kind in solved:
            continue
        solved.add(kind)
        n = next(word.strip(",.") for word in ask.split() if word.strip(",.").isdigit())
        program = f"def f(x, n={n}):\n    {programs[kind]}"
        assert sandbox.grade(program, ProgramTests.of(row["tests"]), LIMITS).share == 1.0, ask
    assert solved == set(programs)
