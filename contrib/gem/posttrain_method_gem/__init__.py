"""GEM: fine-tuning as a game with entropy, so that what the data do not show is not unlearnt.

Paper: Li et al. 2024, "Preserving Diversity in Supervised Fine-Tuning of Large Language Models", arXiv:2408.16673.

Loss: at a token y the opponent q = softmax(z / beta), held fixed, is compared with the label:

    -sum_v q_v w_v (log p(y) - log p(v)),    w_v = 1, or sigmoid(0.01 (z_v - z_y)) with h = "logsigmoid"

Probability flows to the label from tokens that the model itself thinks likely, in proportion; tokens deep in the tail
stay where they are. beta below 1 sharpens q. The loss can be negative.

Differs from the paper: nothing; beta and h are those of the authors' scripts.

Metrics:
- nll: mean negative log-probability of a token. Falls.
- entropy: of the next-token distribution, in nats. Falls less than in ``sft``.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options of GEM."""

    beta: float = 0.7
    """Temperature of the opponent; towards 0 only its favourite token counts."""
    h: Literal["linear", "logsigmoid"] = "linear"
    """Weighting of a rival token by its distance from the label."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}, expected a temperature above 0.")


@hookimpl
def posttrain_token_statistics(logits, labels, config):
    """The game's loss at each token, and the entropy."""
    weight = (logits.detach() / config.beta).softmax(-1)  # (n, V)
    if config.h == "logsigmoid":
        distance = logits.detach() - logits.detach().gather(1, labels[:, None])
        weight = weight * (0.01 * distance).sigmoid()
    logps = logits.log_softmax(-1)
    game = (weight * (logps - logps.gather(1, labels[:, None]))).sum(-1)  # (n,)
    return {"game": game, "entropy": tensors.token_entropy(logits)}


@hookimpl
def posttrain_loss(policy):
    """One value a token."""
    completion = policy.completion
    return PerToken(completion.game, completion.mask), {
        "nll": PerToken(-completion.logps.detach(), completion.mask),
        "entropy": PerToken(completion.entropy, completion.mask),
    }
