"""pytest plugin for methods: fixtures and tests for a test file beside a plugin's package, without imports.

Fixtures call the hooks of the method beside the test file. For its card one ``test_goldens[ENTRY]`` is collected for
each golden entry of the method, and one ``test_conformance[CHECK]`` for each check that applies; ``pytest -m "not
conformance"`` leaves the checks out. Entries come from ``goldens.json`` beside the test file and from the files of the
ini option ``posttrain_goldens``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from posttrain_testkit.registry import Check
from posttrain_testkit.report import checks_for, run_check
from posttrain_testkit.subject import Subject, package_in, subject_of

if TYPE_CHECKING:
    from posttrain.catalogue.methods import Method

GOLDENS = "goldens.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the ini option for golden files."""
    parser.addini("posttrain_goldens", "golden files for all methods, beside goldens.json of each", "paths", [])


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers. A missing golden file is an error, not a silent gap."""
    config.addinivalue_line("markers", "conformance: a check of the conformance kit, for the method beside the file")
    config.addinivalue_line("markers", "goldens: an entry of a golden file, for the method beside the file")
    for file in config.getini("posttrain_goldens"):
        if not file.is_file():
            raise pytest.UsageError(f"posttrain_goldens names {file}, and there is no such file.")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect the goldens and checks of the method beside its test file, once where there are several files."""
    if not (file_path.name.startswith("test_") and file_path.suffix == ".py") or _package(file_path.parent) is None:
        return None
    if file_path.name != min(one.name for one in file_path.parent.glob("test_*.py")):
        return None
    return MethodFile.from_parent(parent, path=file_path)


@cache
def _package(folder: Path) -> Path | None:
    return package_in(folder)


@lru_cache(maxsize=1)
def _subject(folder: Path) -> Subject:
    """Return the method in ``folder``. Only the last one is cached, with the models that its checks have trained."""
    return subject_of(folder)


class MethodFile(pytest.File):
    """The method beside a test file, as a collector of its golden entries and checks."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield the golden entries, then the checks."""
        from posttrain_testkit.goldens.compare import entries_of

        folder = self.path.parent
        for file in [folder / GOLDENS, *self.config.getini("posttrain_goldens")]:
            for entry in entries_of(file, str(folder)) if file.is_file() else []:
                yield GoldenItem.from_parent(self, name=f"test_goldens[{entry}]", file=file, entry=entry)
        for check in checks_for(folder):
            name = f"test_conformance[{check.name.removeprefix('check_')}]"
            yield ConformanceItem.from_parent(self, name=name, check=check)


class MethodItem(pytest.Item):
    """One property of the method beside a test file."""

    def reportinfo(self) -> tuple[Path, None, str]:
        """Return file and name, for reports."""
        return self.path, None, self.name

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show the sentence alone: the traceback would be the kit's."""
        return str(excinfo.value) if excinfo.errisinstance(AssertionError) else super().repr_failure(excinfo, style)


class GoldenItem(MethodItem):
    """One entry of a golden file."""

    def __init__(self, *, file: Path, entry: str, **others: Any):
        super().__init__(**others)
        self.file, self.entry = file, entry
        self.add_marker("goldens")

    def runtest(self) -> None:
        """Compare every quantity of the entry."""
        from posttrain_testkit.goldens.compare import faults

        if found := faults(self.file, self.entry, str(self.path.parent)):
            raise AssertionError("\n".join(found))


class ConformanceItem(MethodItem):
    """One check of the conformance kit."""

    def __init__(self, *, check: Check, **others: Any):
        super().__init__(**others)
        self.check = check
        self.add_marker("conformance")

    def runtest(self) -> None:
        """Run the check; a waived one is an expected failure."""
        result = run_check(self.check, _subject(self.path.parent))
        if result.outcome == "waived":
            pytest.xfail(f"waived: {result.cause}")
        if result.failed:
            raise AssertionError(result.text())


@pytest.fixture(scope="module")
def method(request: pytest.FixtureRequest) -> Method:
    """Load the method whose package is beside the test file."""
    from posttrain.catalogue.methods import load

    folder = request.path.parent
    if _package(folder) is None:
        pytest.fail(f"The fixture 'method' needs a package posttrain_method_NAME in {folder}.", pytrace=False)
    return load(str(folder))


@pytest.fixture(scope="module")
def loss_of(method: Method) -> Callable[..., Any]:
    """``loss_of(inputs, **options)``: the reduced loss, gradients and metrics on named inputs as in a golden file."""
    from posttrain_testkit import numbers

    return partial(numbers.loss_of, method)


@pytest.fixture(scope="module")
def gradcheck(method: Method) -> Callable[..., None]:
    """``gradcheck(inputs, **options)``: assert that gradients by every input agree with finite differences."""
    from posttrain_testkit import numbers

    return partial(numbers.gradcheck, method)


@pytest.fixture(scope="module")
def call_loss(method: Method) -> Callable[..., Any]:
    """``call_loss(policy, reference, columns, **options)``: the unreduced loss of views, and its metrics."""
    from posttrain_testkit import by_hand

    return partial(by_hand.call_loss, method)


@pytest.fixture(scope="module")
def completion_loss(method: Method) -> Callable[..., Any]:
    """``completion_loss(new, advantages, mask, old, options)``: the unreduced loss of sampled completions."""
    from posttrain_testkit import by_hand

    return partial(by_hand.completion_loss, method)


@pytest.fixture(scope="module")
def advantages_of(method: Method) -> Callable[..., Any]:
    """``advantages_of(rewards, group, **facts)``: advantages, and the method's other columns."""
    from posttrain_testkit import by_hand

    return partial(by_hand.advantages_of, method)


@pytest.fixture(scope="module")
def select_of(method: Method) -> Callable[..., Any]:
    """``select_of(rewards, group, **options)``: the rollouts or pairs that the method selects."""
    from posttrain_testkit import by_hand

    return partial(by_hand.select_of, method)
