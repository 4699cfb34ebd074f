"""Supervised fine-tuning: make each completion of the data more likely, token by token.

Paper: Ouyang et al. 2022, "Training language models to follow instructions with human feedback", arXiv:2203.02155
(step 1). Label smoothing: Szegedy et al. 2015, arXiv:1512.00567 section 7.

Loss: the negative log-probability of a token given all before it, averaged over the trained tokens of the whole
optimiser step. Long answers therefore weigh more than short ones; ``aggregation="sequence"`` gives each row the same
weight. With label smoothing a share of the target is spread evenly over the vocabulary, the true token included.

Differs from the paper: nothing in the loss. The paper mixes no label smoothing in.

Metrics:
- accuracy: share of trained tokens that greedy decoding would produce. Rises; 0.5 to 0.8 is usual, 1.0 is memorised.
- entropy: of the next-token distribution in nats. Falls slowly; near 0 the model has become certain of everything.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options of supervised fine-tuning."""

    label_smoothing: float = 0.0
    """Share of the target spread evenly over the vocabulary, 0 to 1. 0 is plain likelihood; translation uses 0.1."""
    aggregation: Literal["token", "sequence"] = "token"
    """Average over the tokens of the step (usual), or over the mean of each row."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected a share from 0 to below 1.")


@hookimpl
def posttrain_token_statistics(logits, labels, config):
    """Entropy and greedy hits of each token; with label smoothing the mean log-probability of the vocabulary."""
    statistics = {"entropy": tensors.token_entropy(logits), "greedy": (logits.argmax(-1) == labels).to(logits.dtype)}
    if config.label_smoothing:
        statistics["vocabulary_logp"] = logits.log_softmax(-1).mean(-1)  # (n,), with gradient
    return statistics


@hookimpl
def posttrain_loss(policy, config):
    """Negative log-likelihood of the completion."""
    completion = policy.completion
    nll = -completion.logps  # (B, T)
    if config.label_smoothing:
        nll = (1 - config.label_smoothing) * nll - config.label_smoothing * completion.vocabulary_logp
    metrics = {
        "accuracy": PerToken(completion.greedy, completion.mask),
        "entropy": PerToken(completion.entropy, completion.mask),
    }
    if config.aggregation == "sequence":
        return completion.mean_of(nll), metrics
    return PerToken(nll, completion.mask), metrics
