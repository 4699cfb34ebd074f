"""Conditional fine-tuning: learn good and bad answers, each behind a control token, and ask with the good one.

Paper: Korbak et al. 2023, "Pretraining Language Models with Human Preferences", arXiv:2302.08582, section 2
(conditional training); for fine-tuning as in HALOs.

Loss: the negative log-likelihood of an answer's tokens behind prompt and control token, averaged over all tokens.
The model learns what either kind looks like; at inference the good token goes behind the prompt.

Differs from the paper: the control token is text of the prompt, in a conversation at the end of what the user said
last, and is not added to the vocabulary.

Metrics:
- nll_good, nll_bad: negative log-probability of a token of good and of bad answers. Both fall.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl
from posttrain.contract.prompts import reworded


@dataclass(frozen=True)
class Config:
    """Options of conditional fine-tuning."""

    control_tokens: tuple[str, str] = ("<|good|>", "<|bad|>")
    """What stands behind the prompts of good and of bad answers."""


@hookimpl
def posttrain_rows(rows, config):
    """Put the control token behind each prompt."""
    marks = [config.control_tokens[0 if row["label"] else 1] for row in rows]
    return [
        {**row, "prompt": reworded(row["prompt"], "{prompt}{mark}", mark=mark)}
        for row, mark in zip(rows, marks, strict=True)
    ]


@hookimpl
def posttrain_loss(batch, policy):
    """Likelihood of all answers."""
    view, good = policy.completion, batch.label.bool()[:, None]  # (B, 1)
    nll = -view.logps.detach()
    return PerToken(-view.logps, view.mask), {
        "nll_good": PerToken(nll, view.mask & good),
        "nll_bad": PerToken(nll, view.mask & ~good),
    }
