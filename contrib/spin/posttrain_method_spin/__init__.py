"""Self-play fine-tuning: the policy plays against itself, and wins where it prefers the data's answers to its own.

Paper: Chen et al. 2024, "Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models",
arXiv:2401.01335, equation 4.7.

Loss in words: the policy answers each prompt of supervised data. The data's answer is preferred to the policy's,
always; the loss is logistic in how much more the policy has raised the former above the policy of the round than the
latter:

    loss = log(1 + exp(-scale * [(log p - log p_t)(data) - (log p - log p_t)(own)]))

When the two can no longer be told apart, nothing is left to learn: the policy answers as the data.

Differs from the paper: a round is --reference-every steps, in which answers are always the current policy's; the paper
has rounds of two epochs over 50,000 prompts, whose answers are written before them.

Metrics:
- margin: scaled margin of the data's answer. From 0 at the beginning of each round upwards.
- accuracy: share of pairs with a positive margin. Near 0.5 at the end of training: the difference is gone.
- logp_data, logp_own: log-probability of the data's and of the own answers in nats. The first rises.
"""

from dataclasses import dataclass

from posttrain import SampleRequest, Selection, hookimpl
from torch.nn.functional import softplus


@dataclass(frozen=True)
class Config:
    """Options."""

    scale: float = 0.1
    """How sharply the two are told apart (lambda; the paper: 0.1, 5 in the last round)."""


@hookimpl
def posttrain_plan_rollouts(prompts, group_size):
    """The policy's answers, and the data's."""
    return [[SampleRequest(group_size), SampleRequest(1, source="data")] for _ in prompts]


@hookimpl
def posttrain_select(rollouts):
    """The data's answer before each of the policy's."""
    data = {int(g): row for row, g in enumerate(rollouts.group) if rollouts.source[row] == "data"}
    own = [(row, int(g)) for row, g in enumerate(rollouts.group) if rollouts.source[row] != "data"]
    return Selection(pairs=[(data[group], row) for row, group in own if group in data])


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of each pair's margin."""
    log_ratio_data = policy.chosen.sum - reference.chosen.sum  # (B,)
    log_ratio_own = policy.rejected.sum - reference.rejected.sum
    margin = config.scale * (log_ratio_data - log_ratio_own)
    return softplus(-margin), {
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_data": policy.chosen.sum.detach(),
        "logp_own": policy.rejected.sum.detach(),
    }
