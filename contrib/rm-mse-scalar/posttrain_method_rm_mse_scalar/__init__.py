"""Scalar regression reward model: the head learns the score that an answer was given.

Paper: Ji et al. 2024, "Align Anything: Training All-Modality Models to Follow Instructions with Language Feedback",
arXiv:2412.15838 (its library's score model).

Loss: (head's score - given score)^2.

Differs from the paper: nothing. Bring scores into a small range first, such as 0 to 1: the head begins near 0.

Metrics:
- error: mean absolute difference from the given score. Falls; compare it with that of always saying the mean.
- score_mean: mean score of the head. Moves to the mean of the data.
"""

from dataclasses import dataclass

from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Scalar regression has no options of its own."""


@hookimpl
def posttrain_config():
    """The options."""
    return Config


@hookimpl
def posttrain_loss(batch, policy):
    """Squared error, one value an answer."""
    score = policy.completion.score  # (B,)
    error = score - batch.score.to(score)
    return error.square(), {"error": error.detach().abs(), "score_mean": score.detach()}
