"""IDK + AP: answer forgotten prompts with refusals, and preserve the answers to all others.

Paper: Yuan et al. 2024, "A Closer Look at Machine Unlearning for Large Language Models", arXiv:2410.08109,
section 4 (answer preservation).

Loss: the negative log-likelihood of a refusal to each forgotten prompt, and for each retained prompt a preference of
its answer over a refusal, in log-probabilities S of whole answers and without a reference:

    forget: - mean logp(refusal)        retain: -(1 / beta) log sigmoid(beta (S(answer) - S(refusal)))

Refusal fine-tuning alone teaches refusing in general; the second term takes that back where it is not wanted, and
fades where the answer is far likelier than the refusal, so that it does not overfit.

Differs from the paper: a row may bring its own ``alternative`` and ``retain_alternative`` samples; otherwise it is
given one of twelve refusals for the whole run, where the paper draws one anew in each epoch.

Metrics:
- refusal_nll: negative log-probability of a refusal's token at a forgotten prompt. Falls towards 0.
- preserved: share of retained prompts whose answer is likelier than a refusal. Stays near 1.
- retain_nll: negative log-probability of retained tokens. Stays where it was.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, samples
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of answer preservation."""

    beta: float = 0.1
    """How soon the preference fades as an answer becomes likelier than its refusal."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}, expected a number above 0.")


@hookimpl
def posttrain_rows(rows):
    """Give each row refusals of both prompts, unless it brings them."""
    pairs = (("alternative", "forget", 0), ("retain_alternative", "retain", 5))
    return [
        {name: samples.refusal(samples.split(row[of])[0], row["row"] + shift) for name, of, shift in pairs} | row
        for row in rows
    ]


@hookimpl
def posttrain_loss(policy, config):
    """One value a token of a refusal, one a retained prompt."""
    refusal, retain = policy.alternative, policy.retain
    margin = retain.sum - policy.retain_alternative.sum  # (B,)
    loss = {
        "refusal": PerToken(-refusal.logps, refusal.mask),
        "preservation": -logsigmoid(config.beta * margin) / config.beta,
    }
    return loss, {
        "refusal_nll": PerToken(-refusal.logps.detach(), refusal.mask),
        "preserved": (margin > 0).to(margin.dtype),
        "retain_nll": PerToken(-retain.logps.detach(), retain.mask),
    }
