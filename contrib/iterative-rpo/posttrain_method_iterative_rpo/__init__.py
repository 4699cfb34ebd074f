"""Iterative reasoning preference optimisation: right against wrong answers, and likelihood for the right ones.

Paper: Pang et al. 2024, "Iterative Reasoning Preference Optimization", arXiv:2404.19733, section 2.

Loss in words: the policy answers each problem several times, a verifier says which answers are right. Right and wrong
ones are paired, up to ``pairs_per_prompt``, each as seldom again as possible. The loss is that of direct preference
optimisation against the policy at the beginning of the round, and alpha times the negative log-likelihood per token of
the right answer, without which both answers' likelihoods fall:

    loss = -log sigmoid(beta * [(log p - log p_t)(right) - (log p - log p_t)(wrong)]) - alpha * log p(right) / |right|

Differs from the paper: a round is --reference-every steps, in which answers are always the current policy's; the paper
samples for all problems, then trains for a while. A step without any right and wrong pair cannot be taken.

Metrics:
- margin: implicit reward of the right answer minus the wrong one's. From 0 at the beginning of each round upwards.
- accuracy: share of pairs with a positive margin. 0.5 at the beginning of a round, then above.
- nll: negative log-probability per token of right answers in nats. Should not rise.
"""

from dataclasses import dataclass

from posttrain import Selection, hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.1
    """Strength of the pull towards the policy of the round (the paper)."""
    alpha: float = 1.0
    """Weight of the likelihood of right answers (the paper)."""
    threshold: float = 0.0
    """Answers with a reward above this are right."""
    pairs_per_prompt: int = 4
    """Largest number of pairs of a prompt (the paper: 10 of 30 answers)."""

    def __post_init__(self) -> None:
        if self.pairs_per_prompt < 1:
            raise ValueError(f"pairs_per_prompt is {self.pairs_per_prompt}, expected a number of pairs from 1")


@hookimpl
def posttrain_config():
    """The options."""
    return Config


@hookimpl
def posttrain_select(rollouts, rewards, config):
    """Pairs of a right and a wrong answer to the same prompt; of a reward that is no verdict the better first."""
    pairs = []
    for group in rollouts.group.unique().tolist():
        rows = (rollouts.group == group).nonzero()[:, 0].tolist()
        right = [row for row in rows if rewards[row] > config.threshold]
        wrong = [row for row in rows if not rewards[row] > config.threshold]
        if not right or not wrong:  # no verdict tells them apart: the best against the worst, if they differ
            rows = sorted(rows, key=lambda row: -float(rewards[row]))
            right, wrong = rows[:1], [row for row in rows[-1:] if rewards[row] < rewards[rows[0]]]
        count = min(config.pairs_per_prompt, max(len(right), len(wrong)) if right and wrong else 0)
        pairs += [(right[turn % len(right)], wrong[turn % len(wrong)]) for turn in range(count)]
    return Selection(pairs=pairs)


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of each pair's margin, and the likelihood of the right answer."""
    log_ratio_chosen = policy.chosen.sum - reference.chosen.sum  # (B,)
    log_ratio_rejected = policy.rejected.sum - reference.rejected.sum
    margin = config.beta * (log_ratio_chosen - log_ratio_rejected)
    nll = -policy.chosen.mean
    return {"preference": -logsigmoid(margin), "nll": config.alpha * nll}, {
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "nll": nll.detach(),
    }
