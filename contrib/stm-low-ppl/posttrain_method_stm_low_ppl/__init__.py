"""Selective token masking: leave out tokens of high perplexity, which is where fine-tuning makes a model forget.

Paper: Wu et al. 2025, "Mitigating Forgetting in LLM Fine-Tuning via Low-Perplexity Token Learning", arXiv:2501.14315.

Loss: the negative log-likelihood of the tokens whose perplexity under the base model, 1 / p, is at most tau, averaged
over these. Answers of a model itself have few tokens above; those of people have many, and learning them costs skills
elsewhere.

Differs from the paper: nothing known; it does not say what the sum is divided by, here the tokens that are kept.

Metrics:
- kept: share of tokens that are learnt. The paper's data: 0.75 to 0.8.
- nll: mean negative log-probability of the tokens that are learnt. Falls.
"""

import math
from dataclasses import dataclass

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of selective token masking."""

    tau: float = 2.5
    """Largest perplexity of a token that is learnt."""

    def __post_init__(self) -> None:
        if not self.tau >= 1:
            raise ValueError(f"tau is {self.tau}, expected a perplexity of at least 1.")


@hookimpl
def posttrain_config():
    """The options."""
    return Config


@hookimpl
def posttrain_annotate(examples, models, config):
    """Which tokens the base model finds likely enough."""
    rows = [example.sequences["completion"][0] for example in examples]
    return {"kept": [-logps <= math.log(config.tau) for logps in models.logps(rows, "reference")]}  # (t,) each


@hookimpl
def posttrain_loss(batch, policy):
    """Likelihood of the tokens that are kept."""
    view = policy.completion
    return PerToken(-view.logps, batch.kept), {
        "kept": PerToken(batch.kept.to(view.logps.dtype), view.mask),
        "nll": PerToken(-view.logps.detach(), batch.kept),
    }
