"""Bradley-Terry reward model: a score per answer, learnt from which of two answers people prefer.

Paper: Ouyang et al. 2022, arXiv:2203.02155, equation 1. Margin: Touvron et al. 2023 (Llama 2), arXiv:2307.09288,
equation 2. Centring: Eisenstein et al. 2023, arXiv:2312.09244. Label smoothing: Wang et al. 2024, arXiv:2401.06080.

Loss: the score of the chosen answer minus that of the rejected one is the log-odds that the first is preferred; the
loss is the negative log-likelihood of the recorded preference. At the first step the loss is about ln 2 = 0.693.
A numeric ``margin`` column, where the data has one, is subtracted from the difference: pairs that people found
clearly different must be scored further apart.

Differs from the paper: the paper puts all pairs among K answers to a prompt into one batch and divides by their
number; here every row is one pair. Centring and label smoothing are additions, off by default.

Metrics:
- accuracy: share of pairs scored in the right order. From 0.5 to 0.6 to 0.8 on human data; much above is suspicious.
- margin: mean difference of the scores. Rises with training; a large value with low accuracy is overconfidence.
- score_chosen, score_rejected: mean scores. Only their difference is learnt, so both may drift; ``centering`` holds
  them near 0.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of the reward model."""

    centering: float = 0.0
    """Weight of the squared sum of a pair's scores, which keeps scores near 0; arXiv:2312.09244 uses 0.01 (TRL's
    center_rewards_coefficient)."""
    label_smoothing: float = 0.0
    """Assumed share of pairs whose labels are swapped, 0 to 0.5; arXiv:2401.06080 uses 0.1."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected a share from 0 to 0.5.")


@hookimpl
def posttrain_loss(batch, policy, config):
    """Logistic loss of the difference of the scores."""
    chosen, rejected = policy.chosen.score, policy.rejected.score  # (B,)
    log_odds = chosen - rejected - batch.get("margin", 0.0)
    flipped = config.label_smoothing
    loss = -(1 - flipped) * logsigmoid(log_odds) - flipped * logsigmoid(-log_odds)
    metrics = {
        "accuracy": (chosen > rejected).to(chosen.dtype),
        "margin": (chosen - rejected).detach(),
        "score_chosen": chosen.detach(),
        "score_rejected": rejected.detach(),
    }
    if config.centering:
        return {"preference": loss, "centering": config.centering * (chosen + rejected).square()}, metrics
    return loss, metrics
