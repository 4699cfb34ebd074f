"""``posttrain sync``: write, or check, everything that is generated from cards."""

from __future__ import annotations

import re
import tomllib
from difflib import unified_diff
from pathlib import Path
from typing import Any

from posttrain.authoring import (
    architectures_page,
    families_page,
    league_page,
    listing,
    promotions_page,
    render,
    rules_page,
)
from posttrain.authoring.league import read_league
from posttrain.catalogue.cards import TIERS, Card, read_card
from posttrain.catalogue.discovery import CARD, find_folder
from posttrain.errors import MethodError

#: For plugins outside a repository of posttrain; inside, the root's pyproject.toml decides.
PYTHON_FLOOR = ">=3.11"
LICENCE = "Apache-2.0"

#: Place of the catalogue in a repository of posttrain, below its folder core.
CATALOGUE = Path("posttrain", "catalogue", "catalogue.json")


def repository(path: Path) -> Path | None:
    """Return the posttrain repository that ``path`` is or is inside of, None outside of one."""
    for folder in (path.resolve(), *path.resolve().parents):
        if (folder / "core" / CATALOGUE).is_file():
            return folder
    return None


def cards_of(root: Path) -> list[Card]:
    """Return the cards of all methods in a repository: stable ones first, then by name."""
    paths = [path for tier in ("plugins", "contrib") for path in (root / tier).glob(f"*/*/{CARD}")]
    return sorted(map(read_card, paths), key=lambda card: (TIERS.index(card.tier), card.name))


def expected(path: Path) -> dict[Path, str | None]:
    """Return every generated file and its right content, None for one that should not exist.

    ``path`` is a repository, or the folder of a plugin outside of one.
    """
    root = repository(path)
    return _of_repository(root) if root else _of_plugin(path)


def _of_repository(root: Path) -> dict[Path, str | None]:
    project = _read(root / "pyproject.toml").get("project", {})
    cards = cards_of(root)
    pages = root / "docs" / "methods"
    files: dict[Path, str | None] = {
        path: None for path in pages.glob("*.md") if render.MARK in path.read_text(encoding="utf-8")
    }
    league, candidates = read_league(root), promotions_page.read_promotions(root / "benchmarks" / "results")
    for card in cards:
        assert card.path is not None  # they were read from files
        folder = card.path.parent.parent
        files[folder / "pyproject.toml"] = render.pyproject(
            card, project.get("requires-python", PYTHON_FLOOR), project.get("license", LICENCE)
        )
        said = [league_page.line(league, card.name) if league else None, promotions_page.line(candidates, card.name)]
        files[pages / f"{card.name}.md"] = render.page(card, [text for text in said if text])
    files[pages / "README.md"] = listing.index(cards)
    files[pages / "search.html"] = listing.search_page(cards)
    files[root / "core" / CATALOGUE] = render.catalogue(cards)
    mark = render.MARK.replace("the card and the module", "the rules")
    files[root / "docs" / "rules.md"] = rules_page.page(root / "benchmarks" / "results", mark)
    measured = render.MARK.replace("the card and the module", "what was measured")
    if (families := architectures_page.page(root / "benchmarks" / "results", measured)) is not None:
        files[root / "docs" / "architectures.md"] = families
    if (families := families_page.page(root / "benchmarks" / "results", measured)) is not None:
        files[root / "docs" / "families.md"] = families
    if candidates:
        files[root / "docs" / "promotions.md"] = promotions_page.page(candidates, measured)
    if league is not None:
        files[root / "docs" / "league.md"] = league_page.page(league, measured)
        files[root / "docs" / "league-table.html"] = league_page.sortable(league, measured)
    return files


def _of_plugin(path: Path) -> dict[Path, str | None]:
    row = find_folder(path)
    assert row.folder is not None  # find_folder() always says where
    card = read_card(row.folder / CARD)
    parents = (row.folder.parent, row.folder.parent.parent)
    project = next((parent for parent in parents if (parent / "pyproject.toml").is_file()), None)
    project = project or (parents[1] if row.folder.parent.name == "src" else parents[0])
    file = project / "pyproject.toml"
    existing = _read(file) if file.is_file() else None
    return {
        file: render.pyproject(card, PYTHON_FLOOR, LICENCE, existing),
        project / "docs" / f"{card.name}.md": _alone(render.page(card)),
    }


def _alone(page: str) -> str:
    """Return a page for use without posttrain's guides: links to them become plain words."""
    return re.sub(r"\[([^]]+)\]\(\.\./[^)]+\)", r"\1", page)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MethodError(f"{path}: is not valid TOML: {error}.") from None


def differences(files: dict[Path, str | None]) -> dict[Path, str]:
    """Return the files whose content differs from what it should be, each with a diff."""
    found = {}
    for path, content in sorted(files.items()):
        present = path.read_text(encoding="utf-8") if path.is_file() else None
        if present != content:
            old, new = (present or "").splitlines(), (content or "").splitlines()
            found[path] = "\n".join(unified_diff(old, new, "is", "should be", lineterm="", n=1))
    return found


def write(files: dict[Path, str | None]) -> list[Path]:
    """Write the right content of files; return those that changed."""
    changed = list(differences(files))
    for path in changed:
        content = files[path]
        if content is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    return changed
