"""UNA: an answer's implied reward is regressed onto a score, whatever gave the score.

Paper: Wang et al. 2024, "UNA: Unifying Alignments of RLHF/PPO, DPO and KTO by a Generalized Implicit Reward Function",
arXiv:2408.15339.

Loss: the implied reward of an answer is beta times its log-ratio of policy to reference. ``mse`` is its squared
distance from the row's score. ``bce`` is for scores that are probabilities, 0 to 1: the cross-entropy of the sigmoid
of the reward.

Differs from the paper: pairs are left to dpo, to which the paper reduces them.

Metrics:
- reward: beta times the log-ratio, policy over reference; nears the score.
- logp: log-probability of the whole answer under the policy.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of UNA."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    distance: Literal["mse", "bce"] = "mse"
    """How the reward is compared with the score."""


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Distance of the implied reward from the score."""
    view = policy.completion
    reward = config.beta * (view.sum - reference.completion.sum)  # (B,)
    score = batch.score.to(reward)
    if config.distance == "mse":
        loss = (score - reward) ** 2  # (B,)
    else:
        loss = -score * logsigmoid(reward) - (1 - score) * logsigmoid(-reward)
    return loss, {"reward": reward.detach(), "logp": view.sum.detach()}
