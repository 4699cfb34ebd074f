"""Identity preference optimisation: regress the margin of a pair onto a target, so that certain pairs do not overfit.

Paper: Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences",
arXiv:2310.12036, equation 17 (algorithm 1).

Loss: the log-ratio of an answer is how much likelier the policy makes it than the reference does. The loss is the
squared distance of the chosen answer's log-ratio, minus the rejected one's, from 1 / (2 beta). A pair beyond the
target is pulled back: unlike a logistic loss this one has its minimum at a finite margin. At the first step both models
agree and the loss is (1 / (2 beta))^2: 25 at the default.

Differs from the paper: equation 17 is written with log-probabilities of whole answers, which puts one target on answers
of 10 and of 500 tokens. The default divides each log-ratio by its answer's number of tokens, which the authors
confirmed to be what their results were made with (as told in TRL's source). ``--no-length-normalize`` is the equation
to the letter, in which a target of 5 is for the whole answer. The paper's tau is called ``beta``, as elsewhere. Its
experiments are bandits, so learning rate and batch size are those of DPO's paper.

Metrics:
- reward_chosen, reward_rejected: beta times the log-ratios, per token unless length_normalize is off. Start at 0.
- margin: their difference. Starts at 0 and rises to its target of 0.5; beyond 0.5 on average is a learning rate that is
  too high.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of identity preference optimisation."""

    beta: float = 0.1
    """Strength of the pull towards the reference, tau in arXiv:2310.12036; the margin's target is 1 / (2 beta)."""
    length_normalize: bool = True
    """Divide log-ratios by the answers' lengths in tokens; off is equation 17 to the letter."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}, expected a number above 0: the margin's target is 1 / (2 beta).")


@hookimpl
def posttrain_loss(policy, reference, config):
    """Squared distance of the pair's margin from its target."""
    if config.length_normalize:
        ratio_chosen = policy.chosen.mean - reference.chosen.mean  # (B,)
        ratio_rejected = policy.rejected.mean - reference.rejected.mean
    else:
        ratio_chosen = policy.chosen.sum - reference.chosen.sum
        ratio_rejected = policy.rejected.sum - reference.rejected.sum
    difference = ratio_chosen - ratio_rejected
    loss = (difference - 1 / (2 * config.beta)) ** 2  # (B,)
    return loss, {
        "reward_chosen": config.beta * ratio_chosen.detach(),
        "reward_rejected": config.beta * ratio_rejected.detach(),
        "margin": config.beta * difference.detach(),
        "accuracy": (difference > 0).to(difference.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
