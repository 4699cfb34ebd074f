"""``posttrain check``: run the kit over methods and print the results."""

from __future__ import annotations

import json
from typing import Any

from posttrain.catalogue.discovery import Installed
from posttrain.cli.flags import Parser
from posttrain.errors import SettingsError

from posttrain_testkit.registry import GROUPS, Check, all_checks, find_check
from posttrain_testkit.report import Result, as_json, checks_for, run_checks
from posttrain_testkit.subject import Subject, installed_subjects, subject_of


def run(arguments: Any) -> int:
    """Check the methods that ``arguments`` name and print the results. Return 0, or 1 where a check fails.

    ``arguments`` has ``method`` (a name, a folder, a list of these; nothing is every installed method), ``only`` (names
    of checks), ``group``, ``json`` and ``list``, each of which may be left out; or is a list of words as on the command
    line. Raises PosttrainError for a method, check or group that does not exist.
    """
    wanted = _parser().parse_args(arguments) if isinstance(arguments, list) else arguments
    names = _as_list(getattr(wanted, "method", None))
    if getattr(wanted, "goldens", None):
        return _goldens(wanted, names)
    groups = tuple(_as_list(getattr(wanted, "group", None))) or tuple(GROUPS)
    if getattr(wanted, "list", False):
        return _print_list(all_checks(groups), bool(getattr(wanted, "json", False)))
    only = [find_check(name) for name in _as_list(getattr(wanted, "only", None))]
    for one in only:
        if one.group not in groups:
            raise SettingsError(f"'{one.name}' is of the group '{one.group}', which --group leaves out.")
    subjects, broken = ([subject_of(name) for name in names], []) if names else installed_subjects()
    if not subjects and not broken:
        raise SettingsError("No method is installed. Name a folder, or install one: pip install posttrain-method-sft")
    family = _family(wanted)
    for subject in subjects:
        subject.family = family
    results = [_broken(row, bool(getattr(wanted, "json", False))) for row in broken]
    for subject in subjects:
        results += _check_one(subject, _chosen(subject, only, groups), quiet=bool(getattr(wanted, "json", False)))
    if getattr(wanted, "json", False):
        print(json.dumps(as_json(results), indent=2))
    return int(any(one.failed for one in results))


def _family(wanted: Any) -> str:
    """Return the kind of model to train on. Raises SettingsError for an unknown one."""
    name = getattr(wanted, "family", None) or "text"
    if name != "text":
        from posttrain_testkit.families import FAMILIES

        if name not in FAMILIES:
            raise SettingsError(f"No family of models is called '{name}'. Families: {', '.join(FAMILIES)}.")
    return str(name)


def _goldens(wanted: Any, folders: list[str]) -> int:
    """Compare losses with a file of numbers instead; ``--only`` then names one of its entries."""
    from posttrain_testkit.goldens import compare

    entries = _as_list(getattr(wanted, "only", None))
    for flag in ("group", "list"):
        if getattr(wanted, flag, None):
            raise SettingsError(f"--{flag} chooses checks, and --goldens runs none. Leave one of them out.")
    if len(entries) > 1:
        raise SettingsError(
            f"--goldens checks every entry or one, but --only names {len(entries)}: {', '.join(entries)}."
        )
    return compare.run(wanted.goldens, entries[0] if entries else None, bool(getattr(wanted, "json", False)), folders)


def _chosen(subject: Subject, only: list[Check], groups: tuple[str, ...]) -> list[Check]:
    """Return the checks to run. A check named by the user that does not apply is an error, not a silent pass."""
    if not only:
        return checks_for(subject, groups)
    applying = checks_for(subject, {one.group for one in only})
    for one in only:
        if one not in applying:
            raise SettingsError(
                f"'{one.name}' does not apply to '{subject.name}', by the schema and needs of its card."
            )
    return only


def _broken(row: Installed, quiet: bool) -> Result:
    """Return the result of an installed method that cannot be read: a failure, not a silent gap."""
    cause = "Usual cause: a card or an entry point that does not fit the package. See: posttrain plugins"
    repeat = f"posttrain check {row.name}"
    result = Result(row.name, "check_card_is_valid", "static", "failed", 0.0, str(row.problem), cause, repeat)
    if not quiet:
        print(result.text(), flush=True)
    return result


def _check_one(subject: Subject, checks: list[Check], quiet: bool) -> list[Result]:
    results = []
    for result in run_checks(subject, checks):
        results.append(result)
        if not quiet and result.outcome != "passed":
            print(result.text(), flush=True)
    if not quiet:
        counts = as_json(results)["counts"]
        seconds = sum(one.seconds for one in results)
        failed = counts["failed"] + counts["stale-waiver"]
        waived = f", {counts['waived']} waived" if counts["waived"] else ""
        verdict = f"{failed} failed, " if failed else ""
        print(f"{subject.name}: {verdict}{counts['passed']} passed{waived} in {seconds:.1f} s", flush=True)
    return results


def _print_list(checks: list[Check], as_data: bool) -> int:
    if as_data:
        rows = [{"name": one.name, "group": one.group, "summary": one.summary} for one in checks]
        print(json.dumps(rows, indent=2))
        return 0
    width = max(len(one.name) for one in checks)
    for one in checks:
        print(f"{one.group:<9} {one.name:<{width}}  {one.summary}")
    return 0


def _as_list(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _parser() -> Parser:
    parser = Parser("check", "Check methods against the contract, or with --goldens against numbers in a file.")
    parser.add_argument("method", nargs="*", help="name or folder [every installed method]")
    parser.add_argument(
        "--only",
        action="append",
        metavar="CHECK",
        help="run this check alone (may be repeated), or this entry of --goldens",
    )
    parser.add_argument("--group", action="append", choices=list(GROUPS), help="run this group alone (may be repeated)")
    parser.add_argument("--family", help="train tiny models of this kind: text, vision or experts [text]")
    parser.add_argument("--goldens", metavar="FILE", help="compare losses with the numbers in this file instead")
    parser.add_argument("--list", action="store_true", help="list the checks")
    parser.add_json()
    return parser
