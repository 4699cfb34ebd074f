import posttrain_method_rejection_sampling_ft as rejection
import pytest


def rows(*triples):
    return [{"row": n, "prompt": p, "completion": c, "score": s} for n, (p, c, s) in enumerate(triples)]


def test_the_best_of_each_prompt_is_learnt(loss_of):
    """Of prompt 0 the second row, of prompt 1 its only one: (2 + 4) / 2."""
    inputs = {"policy_tok": [[-9.0], [-2.0], [-4.0]], "score": [0.1, 0.3, 0.2], "prompt_id": [0, 0, 1]}
    assert loss_of(inputs).loss == pytest.approx(3)


def test_ties_copies_and_a_smallest_score():
    data = rows(("p", "a", 1), ("p", "a", 1), ("p", "b", 1), ("q", "c", 0.2), ("q", "d", 0.9), ("r", "e", 0.1))
    kept = lambda **options: [row["row"] for row in rejection.posttrain_rows(data, rejection.Config(**options))]  # noqa: E731
    assert kept() == [0, 4, 5]
    assert kept(k=2) == [0, 2, 3, 4, 5]
    assert kept(k=2, min_score=0.5) == [0, 2, 4]
