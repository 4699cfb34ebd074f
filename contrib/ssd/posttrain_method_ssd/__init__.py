"""Simple self-distillation: the model imitates what it says at a low temperature, without any judgement.

Paper: arXiv:2604.01193 (2026), "Simple Self-Distillation"; TRL 1.10's experimental trainer of that name.

Loss in words: each prompt is answered at a low temperature and from the likeliest tokens alone (--temperature,
--top-k, --top-p). The model then learns these answers, good and bad ones, as they are, at temperature 1: it moves
probability from the tail, where sampling at temperature 1 goes wrong, to what it finds likely:

    loss = -log p(token) at temperature 1,   averaged over all tokens of the step

Differs from the paper: the answers are written while the model trains, by the model as it then is, and not once
before. So it sharpens further with each step: take few.

Metrics:
- nll: negative log-probability of a token at temperature 1, in nats. Falls.
- entropy: of the next-token distribution at temperature 1, in nats. Falls; below 0.1 the answers have become one.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    sampling_temperature: float | None = None
    """Temperature that the run's log-probabilities are taken at, which is undone; it follows --temperature."""

    def __post_init__(self) -> None:
        if self.sampling_temperature is not None and self.sampling_temperature <= 0:
            raise ValueError(f"sampling_temperature is {self.sampling_temperature}, expected a temperature above 0")


@hookimpl
def posttrain_token_statistics(logits, labels, config):
    """Negative log-probability and entropy at temperature 1."""
    plain = logits * config.sampling_temperature  # (n, V)
    return {
        "nll": -plain.log_softmax(-1).gather(1, labels[:, None])[:, 0],
        "entropy": tensors.token_entropy(plain),
    }


@hookimpl
def posttrain_loss(policy):
    """Negative log-probability of each token."""
    view = policy.completion
    metrics = {name: PerToken(getattr(view, name).detach(), view.mask) for name in ("nll", "entropy")}
    return PerToken(view.nll, view.mask), metrics
