"""The template lab: with every chat template the model's own words of a row are learnt, or the row is refused."""

import pytest
import template_table as table
from posttrain.errors import DataError
from template_lab import Oracle, build_tokenizer, learnt
from template_originals import FAULTS, ORIGINALS
from template_shapes import SHAPES


@pytest.fixture(scope="module")
def own():
    """Outcomes of the templates that this project wrote."""
    return {name: table.outcomes(source) for name, source in ORIGINALS.items()}


def misjudged(found):
    """Cells in which something else is learnt than is right, or a row is refused that the template takes."""
    cells = ((name, shape, one) for name, outcome in found.items() for shape, one in outcome.items())
    return [f"{name}, {shape}: {one.text}" for name, shape, one in cells if one.kind not in ("exact", "refused")]


def test_own_templates(own):
    assert not misjudged(own)
    for name, outcome in own.items():
        assert sum(one.kind == "exact" for one in outcome.values()) >= 10, name


def test_published_templates_and_the_page_about_them(own, published):
    """72 templates x 26 shapes: 0 wrong, no loss without a word, and every refusal has a reason."""
    assert len(published) == 72
    found = {name: table.outcomes(source) for name, source in published.items()}
    assert not misjudged(found)
    assert "?" not in {table.letter(one) for outcome in found.values() for one in outcome.values()}
    text = table.PAGE.read_text(encoding="utf-8")
    assert table.page(text, own, found) == text, "not in step; write it with: python tests/templates/template_table.py"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_template_is_refused_with_what_is_wrong(fault):
    source, name, says = FAULTS[fault]
    oracle = Oracle(source)
    (shape,) = [shape for shape in SHAPES if shape.name == name]
    with pytest.raises(DataError) as caught:
        learnt(build_tokenizer(oracle), oracle.stops, shape)
    assert says in str(caught.value)
