"""UNA: an answer's implied reward is regressed onto a score, whatever gave the score.

Paper: Wang et al. 2024, "UNA: Unifying Alignments of RLHF/PPO, DPO and KTO by a Generalized Implicit Reward Function",
arXiv:2408.15339.

Loss: the implied reward of an answer is beta times its log-ratio of policy to reference. Scores lie between 0 and 1.
``mse``, that of the authors' code, is the squared distance of the reward's sigmoid from the row's score, ``bce`` the
cross-entropy of that sigmoid. ``mse-reward`` takes scores of any size: the squared distance of the reward itself.

Differs from the paper: pairs are left to dpo, to which the paper reduces them.

Metrics:
- reward: beta times the log-ratio, policy over reference; its sigmoid, with mse-reward itself, nears the score.
- logp: log-probability of the whole answer under the policy.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of UNA."""

    beta: float = 0.03
    """Strength of the pull towards the reference (0.03 in the authors' code)."""
    distance: Literal["mse", "bce", "mse-reward"] = "mse"
    """How the reward is compared with the score."""


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Distance of the implied reward from the score."""
    view = policy.completion
    reward = config.beta * (view.sum - reference.completion.sum)  # (B,)
    score = batch.score.to(reward)
    if config.distance == "bce":
        loss = -score * logsigmoid(reward) - (1 - score) * logsigmoid(-reward)  # (B,)
    else:
        loss = (score - (reward if config.distance == "mse-reward" else reward.sigmoid())) ** 2  # (B,)
    return loss, {"reward": reward.detach(), "logp": view.sum.detach()}
