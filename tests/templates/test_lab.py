"""The template lab: with every chat template the model's own words of a row are learnt, or the row is refused."""

import pytest
from posttrain.errors import DataError
from template_lab import Oracle, build_tokenizer, judge, learnt
from template_originals import FAULTS, ORIGINALS
from template_shapes import SHAPES


def outcomes(name, source):
    """Shape -> outcome for one template."""
    oracle = Oracle(source)
    tokenizer = build_tokenizer(oracle)
    return {shape.name: judge(oracle, tokenizer, shape) for shape in SHAPES}


def misjudged(name, found):
    """Cells in which something else is learnt than is right, or a row is refused that the template takes."""
    return [f"{name}, {shape}: {one.text}" for shape, one in found.items() if one.kind not in ("exact", "refused")]


@pytest.mark.parametrize("name", ORIGINALS)
def test_own_templates(name):
    found = outcomes(name, ORIGINALS[name])
    assert not misjudged(name, found)
    assert sum(one.kind == "exact" for one in found.values()) >= 10


def test_published_templates(published):
    """72 templates x 26 shapes: 0 wrong, and no loss without a word."""
    assert len(published) == 72
    wrong = [text for name, source in published.items() for text in misjudged(name, outcomes(name, source))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_template_is_refused_with_what_is_wrong(fault):
    source, name, says = FAULTS[fault]
    oracle = Oracle(source)
    (shape,) = [shape for shape in SHAPES if shape.name == name]
    with pytest.raises(DataError) as caught:
        learnt(build_tokenizer(oracle), oracle.stops, shape)
    assert says in str(caught.value)
