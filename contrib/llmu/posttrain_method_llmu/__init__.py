"""LLMU: gradient ascent, random answers, and closeness to the original model on normal data.

Paper: Yao et al. 2023, "Large Language Model Unlearning", arXiv:2310.10683, section 3.

Loss: three terms, each averaged over its own tokens:

    weights[0] * logp(forget) - weights[1] * logp(another prompt's answer) + weights[2] * KL(original || policy)

The second answers the forgotten prompt with the forgotten answer of some other prompt; the third holds on the retain
set the whole next-token distribution.

Differs from the paper: a prompt gets one random answer for the whole run, from the forget set, where the paper draws
several anew from a set of their own.

Metrics:
- forget_nll: negative log-probability of a forgotten token. Rises without bound: stop early.
- random_nll: the same of the random answers. Falls towards the logarithm of their number.
- retain_kl: divergence from the original model at a retained token, in nats. Starts at 0 and stays small.
"""

import random
from dataclasses import dataclass

from posttrain import PerToken, hookimpl, samples, tensors


@dataclass(frozen=True)
class Config:
    """Options of LLMU."""

    weights: tuple[float, float, float] = (0.5, 1.0, 1.0)
    """Weights of forgetting, of random answers and of closeness to the original model."""


@hookimpl
def posttrain_rows(rows):
    """Give each row its forgotten prompt with the forgotten answer of another row."""
    parts = [samples.split(row["forget"]) for row in rows]
    order = random.Random(0).sample(range(len(rows)), len(rows))
    other = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    return [
        {**row, "alternative": {"prompt": parts[place][0], "completion": parts[other[place]][1]}}
        for place, row in enumerate(rows)
    ]


@hookimpl
def posttrain_token_statistics(logits, reference_logits):
    """Divergence of the policy from the original model at each token."""
    return {"kl": tensors.kl_divergence(reference_logits.log_softmax(-1), logits.log_softmax(-1))}  # (n,)


@hookimpl
def posttrain_loss(policy, config):
    """Three sets of tokens, each in its own unit."""
    forget, random_answer, retain = policy.forget, policy.alternative, policy.retain
    ascent, mismatch, closeness = config.weights
    loss = {
        "forget": PerToken(ascent * forget.logps, forget.mask),
        "random": PerToken(-mismatch * random_answer.logps, random_answer.mask),
        "retain": PerToken(closeness * retain.kl, retain.mask),
    }
    return loss, {
        "forget_nll": PerToken(-forget.logps.detach(), forget.mask),
        "random_nll": PerToken(-random_answer.logps.detach(), random_answer.mask),
        "retain_kl": PerToken(retain.kl.detach(), retain.mask),
    }
