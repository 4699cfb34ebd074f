"""The kit's training checks of every installed method on a tiny model with images, and on one of experts.

Run with ``python benchmarks/kit_families.py vision`` (half an hour on one core); ``--method`` runs some methods again
and keeps the others' results. Writes ``results/kit_<family>.json``, from which ``posttrain sync`` makes a page.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FAMILIES = ("vision", "experts")
#: What a run needs of a model. What is left out of the group asks the method alone, and text answers that.
CHECKS = (
    "check_resume_equals_uninterrupted",
    "check_accumulation_does_not_matter",
    "check_layout_does_not_matter",
)


def checked(family: str, name: str) -> dict[str, Any]:
    """What came out of one method's checks: seconds, how many passed, what failed or is waived and how."""
    from posttrain_testkit.report import checks_for, run_checks
    from posttrain_testkit.subject import subject_of

    subject = subject_of(name)
    subject.family = family
    results = list(run_checks(subject, [one for one in checks_for(subject, ["training"]) if one.name in CHECKS]))
    found: dict[str, Any] = {
        "passed": sum(one.outcome == "passed" for one in results),
        "seconds": round(sum(one.seconds for one in results), 1),
    }
    for outcome in ("failed", "waived", "stale-waiver"):
        if some := {
            one.check: one.cause if outcome == "waived" else one.what for one in results if one.outcome == outcome
        }:
            found[outcome] = some
    return found


def main() -> None:
    """Run the checks and write down what came out, method by method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--method", action="append", help="check this one [all that are installed]")
    parser.add_argument("--go-on", action="store_true", help="leave out methods that the file has")
    options = parser.parse_args()
    from posttrain_testkit.subject import installed_subjects

    file = HERE / "results" / f"kit_{options.family}.json"
    names = options.method or [subject.name for subject in installed_subjects()[0]]
    found = json.loads(file.read_text()) if (options.method or options.go_on) and file.is_file() else {}
    names = [name for name in names if options.method or name not in found]
    for name in names:
        found[name] = checked(options.family, name)
        print(name, json.dumps(found[name]), flush=True)
        file.write_text(text_of(found))


def text_of(found: dict[str, Any]) -> str:
    """JSON with a line a method, so that a difference between two runs can be read."""
    return "{\n" + ",\n".join(f'"{name}": {json.dumps(found[name])}' for name in sorted(found)) + "\n}\n"


if __name__ == "__main__":
    main()
