"""CE-U: cross-entropy unlearning, towards the model's own prediction with the forgotten token taken out.

Paper: Yang 2025, "CE-U: Cross Entropy Unlearning", arXiv:2503.01224.

Loss: at each forgotten token y the cross-entropy of the policy with its own distribution, held fixed, in which y has
probability 0 and all others are scaled up:

    -sum_{v != y} p_v / (1 - p_y) log p_v

The gradient vanishes as y becomes unlikely, where that of gradient ascent grows.

Differs from the paper: nothing. The rows' retain samples are not read.

Metrics:
- forget_nll: negative log-probability of a forgotten token that counts. Rises, slower and slower.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl
from torch.nn.functional import one_hot


@dataclass(frozen=True)
class Config:
    """Options of cross-entropy unlearning."""

    ignore_first: int = 1
    """Tokens at the beginning of an answer that do not count: they say little of what follows."""

    def __post_init__(self) -> None:
        if self.ignore_first < 0:
            raise ValueError(f"ignore_first is {self.ignore_first}, expected a number of tokens, 0 or more.")


@hookimpl
def posttrain_token_statistics(logits, labels):
    """Cross-entropy with the own distribution without the token."""
    own = one_hot(labels, logits.shape[-1]).bool()  # (n, V)
    target = logits.detach().masked_fill(own, -torch.inf).softmax(-1)
    return {"others": -(target * logits.log_softmax(-1)).sum(-1)}  # (n,)


@hookimpl
def posttrain_annotate(examples, config):
    """Which tokens of each answer count."""
    counts = [example.sequences["forget"][0].count for example in examples]
    return {"counts": [torch.arange(count) >= config.ignore_first for count in counts]}  # (t,) each


@hookimpl
def posttrain_loss(batch, policy):
    """One value a token that counts."""
    forget = policy.forget
    return PerToken(forget.others, batch.counts), {"forget_nll": PerToken(-forget.logps.detach(), batch.counts)}
