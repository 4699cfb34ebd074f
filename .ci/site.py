"""What the documentation site has beside the pages of docs/: a hook of MkDocs, named in mkdocs.yml.

- README.md, CHANGELOG.md, CONTRIBUTING.md and SECURITY.md become pages.
- A link from a page to another file of the repository leads to a page that shows the file, so that no link of the plain
  Markdown ends nowhere.
- The catalogue: ``docs/methods/search.html``, which is generated from the cards, within the site.
- The reference: pages of ``:::`` lines, which mkdocstrings fills from docstrings without importing anything.
"""

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
#: Files of the repository's root that are pages, by their place in the site.
PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "recipes.md": "recipes/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
#: Page of the reference -> its title, what stands above, and the modules whose public names it lists.
REFERENCE = {
    "reference/index.md": ("posttrain", "What `import posttrain` gives.", ["api", "contract.samples", "errors"]),
    "reference/contract.md": (
        "Contract",
        "What the author of a method sees; under semver.",
        [
            f"contract.{name}"
            for name in ("hookspecs", "views", "tensors", "rollout", "planning", "generation", "surrogate")
        ],
    ),
    "reference/settings.md": (
        "Settings",
        "Every option of a run, by section; flags and files name them without their section.",
        ["settings.model", "settings.optim", "settings.sections"],
    ),
    "reference/testkit.md": ("Conformance kit", "Fixtures and helpers for tests.", ["posttrain_testkit.numbers"]),
}
#: The page of the catalogue, whose last line becomes HTML once the Markdown around it is converted.
PLACE = "<!-- catalogue -->"
CATALOGUE = f"---\nhide: [toc]\n---\n\n# Find a method\n\n{PLACE}\n"
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".sh": "bash", ".yaml": "yaml"}
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)]*)?\))")


def target(page: str, link: str) -> tuple[str, str | None]:
    """Where ``link`` of the page ``page`` leads in the site, and the repository's file that it shows there.

    ``page`` is a path below docs/, ``link`` a path relative to the file that the page is made of. The file is None for
    what stands in docs/ anyway.
    """
    source = PAGES.get(page, f"docs/{page}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    pages = {file: name for name, file in PAGES.items()}
    if path in pages:
        return _relative(pages[path], page), None
    if path.startswith("docs/"):
        return _relative(path.removeprefix("docs/"), page), None
    if (ROOT / path).is_dir():
        path = f"{path}/README.md"
    return _relative(f"source/{path}" if path.endswith(".md") else f"source/{path}.md", page), path


def _relative(path: str, page: str) -> str:
    return posixpath.relpath(path, posixpath.dirname(page) or ".")


def rewritten(page: str, text: str) -> tuple[str, set[str]]:
    """The Markdown of a page with links as the site has them, and the files that it links to."""
    shown: set[str] = set()

    def change(match: re.Match[str]) -> str:
        place, file = target(page, match[2])
        if file:
            shown.add(file)
        return f"{match[1]}{place}{match[3]}"

    parts = re.split(r"(?ms)(^```.*?^```)", text)  # code is left as it is
    return "".join(part if part.startswith("```") else LINK.sub(change, part) for part in parts), shown


def source_page(path: str) -> str:
    """A page that shows a file of the repository."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return re.sub(r"\[([^]]+)\]\((?!https?:)[^)]+\)", r"\1", text)  # its links are relative to another place
    fence = "`" * 4
    return f"# {path}\n\n{fence}{LANGUAGES.get(Path(path).suffix, '')}\n{text}\n{fence}\n"


def catalogue() -> str:
    """The searchable list of methods as HTML, from the page that ``posttrain sync`` generates."""
    html = (DOCS / "methods" / "search.html").read_text(encoding="utf-8")
    body = html[html.index("<input") :].removesuffix("\n").removesuffix("</html>")
    style = "<style>#word, select { font: inherit; border: 1px solid; padding: .3em }</style>"
    # A block, so that names of the script are not those of the theme.
    body = body.replace("<script>", "<script>{").replace("show();\n</script>", "show();\n}</script>")
    return style + body.replace('one.name + ".md"', '"methods/" + one.name + ".html"')


def reference(page: str) -> str:
    """A page of the reference, to be filled by mkdocstrings."""
    title, words, modules = REFERENCE[page]
    names = [name if name.startswith("posttrain") else f"posttrain.{name}" for name in modules]
    return f"# {title}\n\n{words}\n\n" + "\n\n".join(f"::: {name}" for name in names) + "\n"


def generated() -> dict[str, str]:
    """Every page that docs/ does not have, by its place in the site."""
    found = {name: (ROOT / file).read_text(encoding="utf-8") for name, file in PAGES.items()}
    found |= {name: reference(name) for name in REFERENCE} | {"catalogue.md": CATALOGUE}
    texts = found | {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
    shown = set().union(*(rewritten(page, text)[1] for page, text in texts.items()))
    for path in sorted(shown):
        found[f"source/{path}" if path.endswith(".md") else f"source/{path}.md"] = source_page(path)
    return found


def on_config(config):
    """Add the guides that the navigation does not name to its section Guides."""
    unnamed = {path.name for path in DOCS.glob("*.md")} - set(named(config["nav"]))
    next(entry["Guides"] for entry in config["nav"] if "Guides" in entry).extend(sorted(unnamed))
    return config


def named(navigation):
    """Yield the pages that a navigation names, in all its sections."""
    for entry in navigation:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from named(value) if isinstance(value, list) else [value]


def on_files(files, config):
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for place, text in generated().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite a page's links."""
    place = page.file.src_uri
    if place.startswith(("source/", "reference/")) or place == "catalogue.md":
        return markdown
    return rewritten(place, markdown)[0]


def on_page_content(html, page, config, files):
    """Put the catalogue into its page."""
    return html.replace(PLACE, catalogue()) if page.file.src_uri == "catalogue.md" else html
