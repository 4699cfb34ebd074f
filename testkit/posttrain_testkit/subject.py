"""Subject of the checks: a method's files, its card and, where needed, the loaded method. No torch here."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.catalogue.cards import Card, read_card
from posttrain.catalogue.discovery import Installed, find, installed, is_folder
from posttrain.errors import MethodError

if TYPE_CHECKING:
    from posttrain.catalogue.methods import Method


@dataclass
class Subject:
    """A method under test.

    ``package`` is the folder with ``__init__.py`` and ``method.toml``, ``project`` the folder with its
    ``pyproject.toml`` where there is one. ``memory`` caches results that several checks share, such as a trained tiny
    run.
    """

    name: str
    package: Path
    project: Path | None = None
    source: str = ""
    """User's argument for this method: its name or folder."""
    loaded: Method | None = None
    family: str = "text"
    """Kind of model that the training checks run on, a name of ``families.FAMILIES``."""
    memory: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def card(self) -> Card:
        """The card, read anew from its file. Raises CardError."""
        if self.loaded is not None and self.loaded.card.path is None:
            return self.loaded.card
        return read_card(self.package / "method.toml")

    @cached_property
    def method(self) -> Method:
        """The loaded method; its module is imported on first access. Raises MethodError or PluginError."""
        if self.loaded is not None:
            return self.loaded
        from posttrain.catalogue.methods import load

        return load(self.source or self.name)

    @cached_property
    def pyproject(self) -> dict[str, Any] | None:
        """Contents of the project file, None where the method is only installed."""
        file = self.project / "pyproject.toml" if self.project else None
        if file is None or not file.is_file():
            return None
        try:
            return tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise MethodError(f"{file}: is not valid TOML: {error}.") from None

    @cached_property
    def distribution(self) -> Distribution | None:
        """The installed distribution of this package, None for a folder that is not installed."""
        try:
            return distribution(self.card.distribution)
        except PackageNotFoundError:
            return None

    @property
    def modules(self) -> list[Path]:
        """The Python files of the package, tests left out."""
        files = sorted(self.package.rglob("*.py"))
        return [file for file in files if not file.name.startswith(("test_", "conftest"))]


def subject_of(method: str | Path | Subject | Method) -> Subject:
    """Return the subject for an installed name, a plugin folder, a loaded method, or a subject unchanged.

    Raises MethodError where the name is not installed or the folder has no plugin.
    """
    if isinstance(method, Subject):
        return method
    if isinstance(method, str | Path):
        return _from_place(str(method))
    folder = Path(str(method.module.__file__)).parent
    return Subject(method.card.name, folder, _project_of(folder), str(folder), loaded=method)


def installed_subjects() -> tuple[list[Subject], list[Installed]]:
    """Return a subject for each usable installed method, by name; and the rows of the others."""
    rows = installed()
    broken = [row for row in rows if row.problem or row.card is None or row.card.path is None]
    return [_from_card(row.card, row.name) for row in rows if row not in broken and row.card is not None], broken


def _from_place(place: str) -> Subject:
    folder = Path(place)
    if is_folder(place):
        if not folder.expanduser().is_dir():
            raise MethodError(f"There is no folder '{place}'. Make a plugin with: posttrain new NAME")
        package = package_in(folder.expanduser())
        if package is None:
            raise MethodError(
                f"{place}: holds no method. A plugin folder has a package posttrain_method_NAME with method.toml. "
                "Make one with: posttrain new my-loss"
            )
        name = package.name.removeprefix("posttrain_method_").replace("_", "-")
        return Subject(name, package, _project_of(package), str(folder.resolve()))
    row = find(place)
    if row.card is None or row.card.path is None:
        raise MethodError(f"Method '{place}' is broken: {row.problem}.")
    return _from_card(row.card, row.name)


def _from_card(card: Card, name: str) -> Subject:
    assert card.path is not None  # both callers have checked it
    return Subject(name, card.path.parent, _project_of(card.path.parent), name)


def package_in(folder: Path) -> Path | None:
    """Return the one package with a card in a plugin folder: the folder itself, below it, or below ``src``."""
    for place in (folder, folder / "src"):
        if (place / "__init__.py").is_file() and (place / "method.toml").is_file():
            return place.resolve()
        cards = sorted(place.glob("posttrain_method_*/")) or sorted(card.parent for card in place.glob("*/method.toml"))
        if cards:
            return cards[0].resolve()
    return None


def _project_of(package: Path) -> Path | None:
    for folder in (package.parent, package.parent.parent):
        if (folder / "pyproject.toml").is_file():
            return folder
    return None
