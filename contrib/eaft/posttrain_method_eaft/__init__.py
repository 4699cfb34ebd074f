"""Entropy-adaptive fine-tuning: a token weighs by the entropy of the prediction it meets.

Paper: "Entropy-Adaptive Fine-Tuning", 2026, arXiv:2601.02151.

Loss: for a token of probability p, with the weight held fixed:

    -w log p,    w = (H / 3)^alpha

H is the entropy, in nats, of the K likeliest tokens' probabilities, made to sum to 1; 3 is about ln 20, its largest
value for K = 20. Where the model is sure of another token (low entropy, low probability) the data contradict what it
knows: there it is left alone, which is what forgetting comes from.

Differs from the paper: nothing; the constant 3 is that of the authors' code.

Metrics:
- weight: mean weight of a token. Falls as the model becomes certain.
- nll: mean negative log-probability of a token. Falls.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of entropy-adaptive fine-tuning."""

    alpha: float = 1.0
    """Power of the normalised entropy; 0 is plain fine-tuning."""
    likeliest_tokens: int = 20
    """Tokens whose entropy is taken."""

    def __post_init__(self) -> None:
        if self.likeliest_tokens < 2:
            raise ValueError(
                f"likeliest_tokens is {self.likeliest_tokens}, expected at least 2 tokens: one alone has no entropy."
            )


@hookimpl
def posttrain_token_statistics(logits, config):
    """Entropy of the likeliest tokens, over 3, to the power alpha."""
    likeliest = logits.detach().topk(min(config.likeliest_tokens, logits.shape[-1]), dim=-1).values  # (n, K)
    entropy = torch.special.entr(likeliest.softmax(-1)).sum(-1)  # (n,)
    return {"weight": (entropy / 3.0) ** config.alpha}


@hookimpl
def posttrain_loss(policy):
    """Weighted likelihood."""
    completion = policy.completion
    return PerToken(-completion.weight * completion.logps, completion.mask), {
        "weight": PerToken(completion.weight, completion.mask),
        "nll": PerToken(-completion.logps.detach(), completion.mask),
    }
