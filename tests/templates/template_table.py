"""The tables of docs/chat-templates.md: run this file to write them, with ``--check`` to compare them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from template_lab import Oracle, build_tokenizer, judge
from template_originals import ORIGINALS
from template_published import published_in, wheel_here
from template_shapes import SHAPES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "chat-templates.md"
BEGIN, END = "<!-- outcomes: python tests/templates/template_table.py -->", "<!-- end of outcomes -->"
#: What a refusal says -> its letter in the table.
REASONS = {
    "shows no tools": "l",
    "leaves out or rewrites system prompt": "s",
    "leaves out or rewrites text beside calls": "b",
    "leaves out or rewrites text": "t",
    "leaves out or rewrites reasoning": "r",
    "leaves out or rewrites tool calls": "c",
    "depending on what follows": "m",
    "refuses these messages": "x",
}


def outcomes(source):
    """Shape -> outcome for one template."""
    oracle = Oracle(source)
    tokenizer = build_tokenizer(oracle)
    return {shape.name: judge(oracle, tokenizer, shape) for shape in SHAPES}


def letter(outcome):
    """A cell of the table."""
    if outcome.kind != "refused":
        return "+" if outcome.kind == "exact" else "!"
    return next((mark for text, mark in REASONS.items() if text in outcome.text), "?")


def tables(own, published):
    """Both tables as Markdown."""
    shapes = "\n".join(f"{number}. {shape.name}" for number, shape in enumerate(SHAPES, 1))
    return "\n\n".join([shapes, _table("published template", published), _table("own template", own)])


def _table(title, found):
    cells = [letter(one) for outcome in found.values() for one in outcome.values()]
    head = f"| {title} | " + " | ".join(str(number) for number in range(1, len(SHAPES) + 1)) + " |"
    rule = "|---|" + ":-:|" * len(SHAPES)
    rows = [f"| {name} | " + " | ".join(map(letter, outcome.values())) + " |" for name, outcome in found.items()]
    exact, wrong = cells.count("+"), cells.count("!")
    refused = len(cells) - exact - wrong
    said = f"{len(found)} templates, {len(cells)} rows: {exact} exact, {refused} refused, {wrong} wrong."
    return "\n".join([said, "", head, rule, *rows])


def page(text, own, published):
    """The page with its tables renewed."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tables(own, published)}\n\n{END}{rest.partition(END)[2]}"


def main():
    """Write or compare. Returns the exit status."""
    wheel = wheel_here()
    if wheel is None:
        print("The published templates are missing. Fetch them with: make setup", file=sys.stderr)
        return 2
    own = {name: outcomes(source) for name, source in ORIGINALS.items()}
    published = {name: outcomes(source) for name, source in published_in(wheel).items()}
    text = PAGE.read_text(encoding="utf-8")
    renewed = page(text, own, published)
    if "--check" not in sys.argv:
        PAGE.write_text(renewed, encoding="utf-8")
    return int("--check" in sys.argv and renewed != text)


if __name__ == "__main__":
    sys.exit(main())
