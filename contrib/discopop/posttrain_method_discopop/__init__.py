"""DiscoPOP: a loss found by search, logistic where a pair is wrong and exponential where it is right.

Paper: Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language Models",
arXiv:2406.08414, equation 5 (log-ratio modulated loss).

Loss: with d DPO's margin (beta times the difference of log-ratios) and s = sigmoid(d / tau), the loss is (1 - s) times
the logistic loss of d plus s times exp(-d). The blend is not convex. At the defaults its slope at d = 0, where every
pair starts, is positive: a pair alone would settle at a margin of about -0.12; those that other pairs carry beyond
0.07 rise from there on.

Differs from the paper: nothing. The gradient flows through the blend s too, as in the authors' code.

Metrics:
- blend: weight of the exponential loss, 0.5 at the start; rises towards 1 as pairs get right.
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of DiscoPOP."""

    beta: float = 0.05
    """Strength of the pull towards the reference."""
    tau: float = 0.05
    """Width of the change from one loss to the other, in units of the margin."""

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ValueError(f"tau is {self.tau}, expected a number above 0: margins are divided by it.")


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic and exponential loss of the margin, blended by the margin itself."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    scaled = margin / config.tau  # (B,)
    logistic = -logsigmoid(-scaled).exp() * logsigmoid(margin)
    exponential = (logsigmoid(scaled) - margin).clamp(max=80).exp()  # one exponent: neither factor overflows alone
    loss = logistic + exponential  # (B,)
    return loss, {
        "blend": scaled.sigmoid().detach(),
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
