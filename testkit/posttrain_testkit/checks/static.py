"""Static checks of the card and the packaging. No torch, no import of the method."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version
from posttrain.catalogue.cards import NAME
from posttrain.settings import Settings

from posttrain_testkit.registry import GROUPS, CheckFailed, check
from posttrain_testkit.subject import Subject

_GROUP = "posttrain.methods"


@check("static")
def check_card_is_valid(subject: Subject) -> None:
    """The card can be read; its version, requirements, defaults and waivers are valid."""
    card = subject.card
    try:
        Version(card.version)
    except InvalidVersion:
        raise _card_failure(f"version {card.version!r} is not a version such as 0.1.0") from None
    for line in card.requires:
        try:
            Requirement(line)
        except InvalidRequirement:
            raise _card_failure(
                f"requires has {line!r}, which is not a requirement such as 'posttrain>=0.1,<1'"
            ) from None
    if not any(Requirement(line).name == "posttrain" for line in card.requires):
        raise _card_failure(f"requires is {list(card.requires)}, without posttrain and its range")
    if not card.summary.strip() or len(card.summary.splitlines()) > 1:
        raise _card_failure(f"summary {card.summary!r} is not one line of text")
    shared = set(Settings().flat())
    for key in card.defaults:
        if key not in shared:
            raise _card_failure(f"[defaults] has {key!r}, which is no option of a run.{_close(key, shared)}")
    for key, followed in card.follows.items():
        if followed not in shared:
            hint = _close(str(followed), shared)
            raise _card_failure(f"[follows] lets {key!r} follow {followed!r}, which is no option of a run.{hint}")


@check("static")
def check_waivers_have_reasons(subject: Subject) -> None:
    """Each waiver names a check that exists and a reason."""
    known = _names_of_checks()
    for name, reason in subject.card.waivers.items():
        if name not in known:
            raise CheckFailed(
                f"[waivers] names '{name}', which is no check.{_close(name, known)}",
                "Usual cause: a check that was renamed. All checks: posttrain check --list",
            )
        if not isinstance(reason, str) or len(reason.split()) < 3:
            raise CheckFailed(
                f"The waiver of '{name}' gives the reason {reason!r}.",
                "Usual cause: a failure switched off in a hurry. Say why the paper's mathematics forbids the property.",
            )


@check("static")
def check_names_agree(subject: Subject) -> None:
    """Package, folder, distribution, entry point and version follow from the name in the card."""
    card = subject.card
    found: list[tuple[str, Any, Any]] = [("the package is called", subject.package.name, card.module)]
    project = (subject.pyproject or {}).get("project")
    if project is not None:
        points = project.get("entry-points", {}).get(_GROUP, {})
        found += [
            ("the distribution in pyproject.toml is called", project.get("name"), card.distribution),
            ("the entry points in pyproject.toml are", points, {card.name: card.module}),
        ]
        if "version" not in project.get("dynamic", []):
            found.append(("the version in pyproject.toml is", project.get("version"), card.version))
        if subject.project is not None and subject.project.parent.name in ("plugins", "contrib"):
            found.append(("the folder is called", subject.project.name, card.name))
    elif subject.distribution is not None:
        points = {point.name: point.value for point in subject.distribution.entry_points if point.group == _GROUP}
        found += [
            ("the installed entry points are", points, {card.name: card.module}),
            ("the installed version is", subject.distribution.version, card.version),
        ]
    if not NAME.fullmatch(card.name):
        found.append(("the name is", card.name, "lower-case words joined by hyphens"))
    for what, value, expected in found:
        if value != expected:
            raise CheckFailed(
                f"By the card {what} {_quoted(expected)}, but it is {_quoted(value)}.",
                "Usual cause: a name changed in one place. Everything follows from the card: posttrain sync",
            )


@check("static")
def check_card_is_in_the_wheel(subject: Subject) -> None:
    """The card is inside the package, and the build includes it."""
    if not (subject.package / "method.toml").is_file():
        raise CheckFailed(
            f"{subject.package.name} has no method.toml beside its __init__.py.",
            "Usual cause: a card in the project's folder. A wheel holds what lies inside the package.",
        )
    project = subject.pyproject
    if project is None:
        _check_installed_files(subject)
        return
    backend = project.get("build-system", {}).get("build-backend", "setuptools.build_meta")
    card = f"{subject.package.name}/method.toml"
    if backend.startswith("hatchling"):
        problem = _left_out_by_hatch(project.get("tool", {}).get("hatch", {}).get("build", {}), card)
    elif backend.startswith("setuptools"):
        problem = _left_out_by_setuptools(project.get("tool", {}).get("setuptools", {}), subject)
    else:
        problem = ""  # other back ends include every file of a package, as flit and uv_build do
    if problem:
        raise CheckFailed(
            f"The wheel would not hold {card}: {problem}.",
            "Usual cause: build settings written by hand. posttrain sync writes a pyproject.toml that takes the card.",
        )


def _check_installed_files(subject: Subject) -> None:
    files = subject.distribution.files if subject.distribution is not None else None
    names = [PurePosixPath(str(file)).as_posix() for file in files or ()]
    card = f"{subject.package.name}/method.toml"
    editable = any(name.endswith((".pth", "direct_url.json")) for name in names)
    if names and not editable and card not in names:
        raise CheckFailed(
            f"The installed distribution lists {len(names)} files and {card} is not among them.",
            "Usual cause: a wheel built without package data. A pyproject.toml by posttrain sync takes the card.",
        )


def _left_out_by_hatch(build: dict[str, Any], card: str) -> str:
    wheel = build.get("targets", {}).get("wheel", {})
    excluded = [*build.get("exclude", []), *wheel.get("exclude", [])]
    for pattern in excluded:
        if _matches(card, pattern):
            return f"exclude = {pattern!r} leaves it out"
    for key in ("only-include", "include", "packages"):
        chosen = wheel.get(key)
        if chosen and not any(
            _matches(card, one) or one.rstrip("/").endswith(card.partition("/")[0]) for one in chosen
        ):
            return f"{key} = {chosen} does not name it"
    return ""


def _left_out_by_setuptools(settings: dict[str, Any], subject: Subject) -> str:
    if settings.get("include-package-data") and subject.project and (subject.project / "MANIFEST.in").is_file():
        return ""
    data = settings.get("package-data", {})
    patterns = [*data.get("*", []), *data.get(subject.package.name, [])]
    if any(fnmatch("method.toml", pattern) for pattern in patterns):
        return ""
    return f"setuptools leaves out what is not Python, and package-data is {data or 'not given'}"


def _matches(path: str, pattern: str) -> bool:
    """Whether a pattern in .gitignore's syntax matches the path or one of its folders."""
    pattern = pattern.strip("/")
    parts = PurePosixPath(path).parts
    candidates = [path, *parts, *("/".join(parts[: end + 1]) for end in range(len(parts)))]
    return any(fnmatch(one, pattern) or fnmatch(one, pattern.removeprefix("**/")) for one in candidates)


def _names_of_checks() -> set[str]:
    """Return the names of all checks, read from the text of their modules: the loss checks would import torch."""
    here = Path(__file__).parent
    modules = [here / f"{module}.py" for group in GROUPS.values() for module in group]
    return set(_defined_checks(modules))


def _defined_checks(modules: list[Path]) -> Iterator[str]:
    for module in modules:
        for line in module.read_text(encoding="utf-8").splitlines():
            if line.startswith("def check_"):
                yield line.removeprefix("def ").partition("(")[0]


def _close(name: str, known: set[str]) -> str:
    close = get_close_matches(name, sorted(known), 1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _quoted(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def _card_failure(what: str) -> CheckFailed:
    return CheckFailed(
        f"method.toml: {what}.", "Usual cause: a card filled in by guess. The fields: posttrain new --help"
    )
