"""``posttrain docs NAME``: print a page of the documentation as plain text."""

from __future__ import annotations

from pathlib import Path

from posttrain.catalogue.defaults import unknown
from posttrain.cli.flags import Parser
from posttrain.cli.output import print_json
from posttrain.errors import SettingsError


def run(arguments: list[str]) -> int:
    """Print a page, or the names of all."""
    parser = Parser("docs", "Print a page of the documentation. Without a name: which pages there are.")
    parser.add_argument("name", nargs="?", help="name of a page, such as for-agents or methods/grpo")
    parser.add_json()
    options = parser.parse_args(arguments)
    pages = find_pages()
    if options.name is None:
        titles = {name: title(path) for name, path in pages.items() if not name.startswith("methods/")}
        if options.json:
            print_json([{"name": name, "title": words} for name, words in titles.items()])
        else:
            print("\n".join(f"{name:<24}{words}" for name, words in titles.items()))
            print(f"{'methods/NAME':<24}one page for each of {len(pages) - len(titles)} methods")
        return 0
    name = options.name.removeprefix("docs/").removesuffix(".md")
    if name not in pages:
        sentence = unknown(name, pages).replace("Unknown option", "Unknown page")
        raise SettingsError(f"{sentence}  All pages: posttrain docs")
    text = pages[name].read_text(encoding="utf-8")
    print_json({"name": name, "text": text}) if options.json else print(text, end="")
    return 0


def find_pages() -> dict[str, Path]:
    """Find the pages that were installed with the package, or those of the checkout it runs from, by name."""
    package = Path(__file__).resolve().parent.parent
    folder = next((path for path in (package / "docs", package.parent.parent / "docs") if path.is_dir()), package)
    files = sorted([*folder.glob("*.md"), *folder.glob("methods/*.md")])
    return {str(file.relative_to(folder).with_suffix("")): file for file in files}


def title(path: Path) -> str:
    """Return the first heading of a page."""
    with path.open(encoding="utf-8") as file:
        return next((line.lstrip("# ").strip() for line in file if line.startswith("#")), "")
