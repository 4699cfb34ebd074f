"""Sets the version of a release everywhere: ``python .ci/version.py 0.2.0``. Running it twice changes nothing more.

The core and the conformance kit get the version itself. Experimental methods carry the version of the core they are
released with. A stable method has a version of its own: its minor number rises, once for each release of the core.
Every method then asks for the core it was tested with, or a newer one, below the next major version.
"""

import re
import sys
from datetime import date
from pathlib import Path

from packaging.version import Version
from posttrain.authoring.sync import expected, write

ROOT = Path(__file__).resolve().parent.parent


def replace(path: Path, *changes: tuple[str, str]) -> None:
    """Replace the first match of each pattern in a file, which has to have one."""
    text = path.read_text(encoding="utf-8")
    for pattern, new in changes:
        text, count = re.subn(pattern, new, text, count=1, flags=re.MULTILINE)
        if not count:
            sys.exit(f"{path}: nothing matches {pattern}.")
    path.write_text(text, encoding="utf-8")


def core(version: str) -> None:
    """The core, the kit, and the file that says how to cite them."""
    line = (r'^version = "[^"]+"', f'version = "{version}"')
    replace(ROOT / "pyproject.toml", line, (r"posttrain-testkit==[^\"]+", f"posttrain-testkit=={version}"))
    replace(ROOT / "testkit" / "pyproject.toml", line, (r'"posttrain==[^"]+"', f'"posttrain=={version}"'))
    replace(ROOT / "core" / "posttrain" / "__init__.py", (r'^__version__ = "[^"]+"', f'__version__ = "{version}"'))
    citation = ROOT / "CITATION.cff"
    if f'version: "{version}"' not in citation.read_text(encoding="utf-8"):
        today = (r"^date-released: .+$", f"date-released: {date.today().isoformat()}")
        replace(citation, (r"^version: .+$", f'version: "{version}"'), today)


def method(card: Path, version: Version) -> None:
    """The card of one method; everything else about it is generated from that."""
    text = card.read_text(encoding="utf-8")
    own = Version(re.findall(r'(?m)^version = "([^"]+)"', text)[0])
    wanted = f"posttrain>={version.major}.{version.minor},<{version.major + 1}"
    if 'tier = "stable"' not in text:
        own = max(own, version)
    elif f'"{wanted}"' not in text:
        own = Version(f"{own.major}.{own.minor + 1}.0")
    replace(card, (r'^version = "[^"]+"', f'version = "{own}"'), (r'"posttrain>=[^"]+"', f'"{wanted}"'))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Say the version: python .ci/version.py 0.2.0")
    core(sys.argv[1])
    for tier in ("plugins", "contrib"):
        for path in (ROOT / tier).glob("*/*/method.toml"):
            method(path, Version(sys.argv[1]))
    print(f"{len(write(expected(ROOT)))} generated files changed")
