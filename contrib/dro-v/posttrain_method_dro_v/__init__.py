"""Direct reward optimisation: one answer a prompt and its reward are enough, with a learnt value as the baseline.

Paper: Richemond et al. 2024, "Offline Regularised Reinforcement Learning for Large Language Models Alignment",
arXiv:2405.19107, section 3 (DRO-V).

Loss in words: the best policy and the best value function together satisfy R = V(prompt) + tau log(p / p_ref) for
every answer, whoever gave it. The squared violation is minimised over both at once:

    loss = 1/2 (R - V - tau * sum of (log p - log p_ref))^2,   averaged over answers

Differs from the paper: answers are the policy's own, not those of a fixed dataset. V is a linear head on the policy's
hidden state behind the prompt, where the paper has a network of its own, with a gradient scaled by 1 / tau for the
policy.

Metrics:
- advantage: mean of R - V. Near 0 once the values know what to expect.
- value: mean V. Comes near the mean reward.
- residual: mean absolute bracket. Falls.
- kl: log-ratio of an answer to the reference, summed over its tokens. From 0 upwards.
- entropy: of the next-token distribution in nats. Falls slowly; below 0.01 the policy has stopped exploring.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    tau: float = 0.1
    """Weight of the divergence from the reference, for rewards between 0 and 1 (the paper: 1, for a reward model whose
    scores lie farther apart)."""

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise ValueError(f"tau is {self.tau}, expected a number above 0")


@hookimpl
def posttrain_config():
    """The options."""
    return Config


@hookimpl
def posttrain_extra_modules(hidden_size):
    """The value of a prompt: read from the hidden state that predicts the first token of an answer."""
    head = torch.nn.Linear(hidden_size, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return {"value": head}


@hookimpl
def posttrain_token_statistics(logits):
    """Entropy of each token, for the log."""
    return {"entropy": tensors.token_entropy(logits)}


@hookimpl
def posttrain_advantages(rewards):
    """The rewards: (B,)."""
    return rewards.nan_to_num(0.0)


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Squared violation, one value an answer."""
    view = policy.completion
    value = view.value[:, 0] if view.value.shape[1] else view.sum * 0  # (B,)
    log_ratio = view.sum - reference.completion.sum
    worth = batch.advantages.reshape(len(value), -1).mean(1).to(value.dtype)
    residual = worth - value - config.tau * log_ratio
    return 0.5 * residual.square(), {
        "advantage": (worth - value).detach(),
        "value": value.detach(),
        "residual": residual.detach().abs(),
        "kl": log_ratio.detach(),
        "entropy": PerToken(view.entropy, view.mask),
    }
