"""Where the published templates are found."""

import sys
import zipfile
from pathlib import Path

PEER = "trl==1.16.0"


def wheel_here():
    """The wheel that ``make setup`` laid into the environment; None without it."""
    return next(iter(sorted((Path(sys.prefix) / "wheels").glob("trl-1.16.0-*.whl"))), None)


def published_in(wheel):
    """Name -> text of the templates in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jinja")]
        return {Path(name).stem: archive.read(name).decode() for name in sorted(names)}
