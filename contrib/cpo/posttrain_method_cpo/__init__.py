"""Contrastive preference optimisation: DPO's loss under a uniform reference, held by a likelihood term.

Paper: Xu et al. 2024, "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine
Translation", arXiv:2401.08417, equation 3 and the likelihood term that is added to it.

Loss: the reward of an answer is beta times its log-probability, summed over its tokens; the preference term is the
negative log-sigmoid of the chosen answer's reward minus the rejected one's. The nll term, with a weight of 1, is the
negative log-likelihood of the chosen answers, so that the preference term cannot win by making both unlikely. Without a
reference the first loss depends on the model and the lengths: longer answers begin with lower rewards.

Differs from the paper: the paper writes the likelihood of whole answers; here, as in the authors' code, it is the mean
over tokens, and over those of the whole optimiser step, so that it does not depend on how the batch is cut. The paper
trains adapters under a schedule of the inverse root with 1 % warm-up, posttrain's default is linear without.
``sft_weight`` is an option (TRL's cpo_alpha); the paper has 1.

Metrics:
- reward_chosen, reward_rejected: beta times the log-probabilities of the answers. The chosen one rises, or at least
  does not fall: otherwise raise sft_weight.
- margin: their difference. Rises.
- accuracy: share of pairs with a positive margin. Towards 0.7 to 0.9; it need not start at 0.5.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of contrastive preference optimisation."""

    beta: float = 0.1
    """Scale of the rewards (0.1 in the authors' script)."""
    sft_weight: float = 1.0
    """Weight of the likelihood term on the chosen answers, averaged over their tokens; 1 is the paper."""


@hookimpl
def posttrain_loss(policy, config):
    """Logistic loss of the pair's margin, and the likelihood of the chosen answer."""
    chosen, rejected = policy.chosen, policy.rejected
    reward_chosen = config.beta * chosen.sum  # (B,)
    reward_rejected = config.beta * rejected.sum
    margin = reward_chosen - reward_rejected
    loss = {
        "preference": -logsigmoid(margin),  # (B,)
        "nll": PerToken(-config.sft_weight * chosen.logps, chosen.mask),  # (B, T)
    }
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": chosen.sum.detach(),
        "logp_rejected": rejected.sum.detach(),
    }
