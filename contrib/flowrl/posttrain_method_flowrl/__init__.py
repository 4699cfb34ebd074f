"""FlowRL: answers shall be as likely as their rewards say, so that more than one way to be right survives.

Paper: Zhu et al. 2025, "FlowRL: Matching Reward Distributions for LLM Reasoning", arXiv:2509.15207, equation 6.

Loss in words: of an answer's reward, less its group's mean in standard deviations (A), the policy shall make a
probability in proportion to p_ref exp(beta A). The trajectory-balance loss asks for that, with a partition function Z
of the prompt that is learnt beside the policy, log-probabilities as means over an answer's tokens, and a clipped
importance weight w of the whole answer, which has no gradient:

    loss = w * (log Z(prompt) + mean log p - beta * A - mean log p_ref)^2,   w = clip(ratio, 1 - epsilon, 1 + epsilon)

averaged over answers.

Differs from the paper: log Z is a network of three layers, as there, on the hidden state behind the prompt instead of
the mean over the prompt's.

Metrics:
- violation: mean absolute bracket. Falls.
- log_z: mean of log Z.
- weight: mean w. 1 in the first update of a batch.
- entropy: of the next-token distribution in nats. Falls slowly; below 0.01 the policy has stopped exploring.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors
from torch import nn


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 15.0
    """How sharply probabilities follow rewards (the paper)."""
    epsilon: float = 0.2
    """How far the importance weight may leave 1 (the paper)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_config():
    """The options."""
    return Config


@hookimpl
def posttrain_extra_modules(hidden_size):
    """log Z of a prompt: read from the hidden state that predicts the first token of an answer."""
    middle = [layer for _ in range(2) for layer in (nn.Linear(hidden_size, hidden_size), nn.GELU())]
    last = nn.Linear(hidden_size, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return {"log_z": nn.Sequential(*middle, last)}


@hookimpl
def posttrain_token_statistics(logits):
    """Entropy of each token, for the log."""
    return {"entropy": tensors.token_entropy(logits)}


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    above = rewards - tensors.group_mean(rewards, rollouts.group)
    return (above / (tensors.group_std(rewards, rollouts.group) + config.advantage_epsilon)).nan_to_num(0.0)


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Weighted squared violation, one value an answer."""
    view = policy.completion
    log_z = view.log_z[:, 0] if view.log_z.shape[1] else view.sum * 0  # (B,)
    advantages = batch.advantages.reshape(len(log_z), -1).mean(1).to(log_z.dtype)
    violation = log_z + view.mean - config.beta * advantages - reference.completion.mean
    ratio = tensors.importance_ratio(view.total(view.logps - batch.old_logps)).detach()
    weight = ratio.clamp(1 - config.epsilon, 1 + config.epsilon)
    return weight * violation.square(), {
        "violation": violation.detach().abs(),
        "log_z": log_z.detach(),
        "weight": weight,
        "entropy": PerToken(view.entropy, view.mask),
        "advantage_size": advantages.abs(),
    }
