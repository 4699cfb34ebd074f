"""Odds-ratio preference optimisation: supervised fine-tuning and preference in one stage, without a reference.

Paper: Hong, Lee, Thorne 2024, "ORPO: Monolithic Preference Optimization without Reference Model", arXiv:2403.07691,
equations 4 to 7.

Loss: the nll term is the negative log-likelihood of the chosen answers. The probability of an answer is the geometric
mean of its tokens' probabilities, its odds are p / (1 - p); the preference term is beta times the negative log-sigmoid
of the log of the chosen answer's odds over the rejected one's. Meant for models that are not fine-tuned yet: the
likelihood term teaches, the odds ratio holds the rejected answers back.

Differs from the paper: the authors' script trains 5 epochs, with 200 warm-up steps and a schedule of the inverse root;
posttrain's default is one epoch, linear without warm-up. The likelihood is that of the answer given the prompt, as the
paper writes it; TRL and the authors' script count the prompt's tokens too. It is a mean over the tokens of the whole
optimiser step, so that it does not depend on how the batch is cut. The paper's lambda is called ``beta``, as in TRL.
An answer whose tokens are all certain has infinite odds: probabilities above 0.999999 count as 0.999999.

Metrics:
- preference, nll: the two terms. nll falls as in supervised fine-tuning; preference starts near beta * 0.7 and falls.
- log_odds_ratio: log of the chosen answer's odds over the rejected one's. Starts near 0 and rises; a pair
  beyond 5 teaches nothing more.
- accuracy: share of pairs whose chosen answer has the higher odds. From 0.5 towards 0.7 to 0.9.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl
from torch import expm1, log
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of odds-ratio preference optimisation."""

    beta: float = 0.1
    """Weight of the odds ratio beside the likelihood, lambda in arXiv:2403.07691 (0.1 for its Mistral models)."""


@hookimpl
def posttrain_loss(policy, config):
    """Likelihood of the chosen answer, and the logistic loss of the odds ratio."""
    chosen, rejected = policy.chosen, policy.rejected
    ratio = _log_odds(chosen.mean) - _log_odds(rejected.mean)  # (B,)
    loss = {
        "preference": -config.beta * logsigmoid(ratio),  # (B,)
        "nll": PerToken(-chosen.logps, chosen.mask),  # (B, T)
    }
    return loss, {
        "log_odds_ratio": ratio.detach(),
        "accuracy": (ratio > 0).to(ratio.dtype),
        "logp_chosen": chosen.sum.detach(),
        "logp_rejected": rejected.sum.detach(),
    }


def _log_odds(logp):
    """``log(p / (1 - p))`` of a log-probability ``(B,)``; expm1 keeps 1 - p exact where p is close to 1."""
    logp = logp.clamp(max=-1e-6)
    return logp - log(-expm1(logp))
