"""Self-play preference optimisation with hard labels: push each answer's log-ratio to a fixed target of its own.

Paper: Wu et al. 2024, "Self-Play Preference Optimization for Language Model Alignment", arXiv:2405.00675, equation 4.7
with win probabilities 1 and 0.

Loss: the log-ratio of an answer is how much likelier the policy makes it than the reference, the policy of the last
iteration. The chosen answer's is regressed onto 1 / (2 beta), the rejected one's onto -1 / (2 beta), so unlike a
margin it says of each answer where to go.

(ratio_chosen - 1 / (2 beta))^2 + (ratio_rejected + 1 / (2 beta))^2

Differs from the paper: eta is 1 / beta. One iteration on given pairs; the paper samples new answers from each
iteration's policy and estimates win probabilities with a preference model (that is the method sppo, which also halves
the sum).

Metrics:
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of SPPO with hard labels."""

    beta: float = 0.001
    """Inverse of the step size eta (arXiv:2405.00675: eta is 1000); the targets are 1 / (2 beta) nats."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}, expected a number above 0: the targets are 1 / (2 beta).")


@hookimpl
def posttrain_loss(policy, reference, config):
    """Squared distances of both log-ratios from their targets."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    chosen, rejected = reward_chosen / config.beta, reward_rejected / config.beta  # log-ratios (B,)
    target = 1 / (2 * config.beta)
    loss = (chosen - target) ** 2 + (rejected + target) ** 2  # (B,)
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
