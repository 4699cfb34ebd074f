"""The documentation site: what is added to the pages, links, and the catalogue in a browser."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from .runs.browser import CHROMIUM, browser

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("posttrain_site", ROOT / ".ci" / "site.py")
site = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(site)
BUILT = ROOT / "site" / "catalogue.html"


def test_every_page_of_the_guides_is_in_the_navigation():
    config = site.on_config(yaml.safe_load((ROOT / "mkdocs.yml").read_text()))
    names = list(site.named(config["nav"]))
    guides = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert set(names) == guides | set(site.PAGES) | set(site.REFERENCE) | {"catalogue.md", "methods/README.md"}
    assert len(names) == len(set(names))


def test_links_are_those_of_the_site():
    text = "[a](../README.md#install) [b](rows.md) [c](../core/posttrain/api.py) [d](https://e.org/x.md) [e](#f)"
    changed, shown = site.rewritten("getting-started.md", f"{text}\n\n```\n[a](../README.md)\n```\n")
    assert changed == (
        "[a](index.md#install) [b](rows.md) [c](source/core/posttrain/api.py.md) [d](https://e.org/x.md) [e](#f)"
        "\n\n```\n[a](../README.md)\n```\n"
    )
    assert shown == {"core/posttrain/api.py"}
    assert site.target("index.md", "docs/methods/dpo.md") == ("methods/dpo.md", None)
    assert site.target("methods/dpo.md", "../../benchmarks/parity/") == (
        "../source/benchmarks/parity/README.md",
        "benchmarks/parity/README.md",
    )


def test_every_link_of_every_page_leads_to_a_file():
    pages = site.generated()
    for path in [*(ROOT / "docs").rglob("*.md")]:
        pages.setdefault(str(path.relative_to(ROOT / "docs")), path.read_text())
    count = 0
    for page, text in pages.items():
        if page.startswith("source/"):
            continue
        for found in re.findall(r"\]\(([^)#:\s]+)(?=[#)])", site.rewritten(page, text)[0]):
            place = (ROOT / "docs" / page).parent.joinpath(found).resolve()
            assert place.is_file() or str(place.relative_to(ROOT / "docs")) in pages, f"{page}: {found}"
            count += 1
    assert count > 1000


def test_the_reference_names_modules_that_exist():
    for page in site.REFERENCE:
        for name in re.findall(r"(?m)^::: (\S+)$", site.reference(page)):
            assert importlib.util.find_spec(name) is not None


@pytest.mark.skipif(
    not BUILT.is_file() or CHROMIUM is None or importlib.util.find_spec("websockets") is None,
    reason="no site (make docs), no chromium, or no websockets",
)
def test_the_catalogue_filters_in_a_browser():
    with browser() as page:
        page.open(BUILT, 1280, 800)
        page.wait_for("document.querySelectorAll('#rows tr').length > 200")
        count = page.value("document.querySelectorAll('#rows tr').length")
        page.value("{ family.value = 'distillation'; family.dispatchEvent(new Event('input', {bubbles: true})); 1 }")
        page.wait_for(f"document.querySelectorAll('#rows tr').length < {count}")
        page.value("{ word.value = 'gkd'; word.dispatchEvent(new Event('input', {bubbles: true})); 1 }")
        page.wait_for("document.querySelector('#rows a').textContent === 'gkd'")
        link = page.value("document.querySelector('#rows a').href")
        assert Path(link.removeprefix("file://")).is_file()
        assert [address for address in page.requests if not address.startswith(("file:", "data:", "about:"))] == []
