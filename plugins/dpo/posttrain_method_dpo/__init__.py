"""Direct preference optimisation: learn from pairs without a reward model.

Paper: Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
arXiv:2305.18290, equation 7. Label smoothing: Mitchell 2023, ericmitchell.ai/cdpo.pdf, equation 3.

Loss: the implicit reward of an answer is beta times how much likelier the policy makes it than the reference does,
summed over its tokens. The loss is the negative log-sigmoid of the chosen answer's reward minus the rejected one's.
At the first step both models agree and the loss is ln 2 = 0.693.

Differs from the paper: the paper optimises with RMSprop and 150 warm-up steps, posttrain's default is AdamW without
warm-up (``--optimizer rmsprop --warmup-steps 150``). ``label_smoothing`` and ``sft_weight`` are additions, off by
default. A ``margin`` column is not used: an offset between the answers is another method (odpo).

Metrics:
- reward_chosen, reward_rejected: implicit rewards. Both may fall together; the chosen one far below -5 is a warning.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of direct preference optimisation."""

    beta: float = 0.1
    """Strength of the pull towards the reference (arXiv:2305.18290 appendix B); smaller values let the policy move
    further."""
    label_smoothing: float = 0.0
    """Assumed share of pairs whose labels are swapped, 0 to 0.5 (conservative DPO); 0 is the paper."""
    sft_weight: float = 0.0
    """Weight of an added likelihood term on the chosen answers, averaged over their tokens (TRL's rpo_alpha)."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected a share from 0 to 0.5.")


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the pair's margin."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    flipped = config.label_smoothing
    loss = -(1 - flipped) * logsigmoid(margin) - flipped * logsigmoid(-margin)  # (B,)
    metrics = {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
    if config.sft_weight:
        nll = PerToken(-config.sft_weight * policy.chosen.logps, policy.chosen.mask)
        return {"preference": loss, "nll": nll}, metrics
    return loss, metrics
