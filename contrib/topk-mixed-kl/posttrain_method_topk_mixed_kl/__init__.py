"""Mixed divergence over the teacher's likeliest tokens: what a teacher can send over a wire is all that is compared.

Source: NeMo-RL, on-policy distillation with kl_type "mixed"; there is no paper.

Loss in words: the student answers the prompts. At each token the teacher names its ``topk`` likeliest next tokens with
their probabilities, taken from its whole vocabulary, as are the student's. Over these tokens alone, not made to sum to
1 again:

    loss = sum over the top k of  w p (log p - log s) + (1 - w) s (log s - log p),   averaged over all tokens

Differs from NeMo-RL: its option to push down what the student gives to all other tokens is left out; ``topk_mass``
shows whether that matters.

Metrics:
- divergence: the loss of a token in nats; without the rest of the vocabulary it may be below 0. Falls.
- topk_mass: the student's probability of the teacher's top tokens together. Rises towards the teacher's, near 1.
- entropy: of the student's next-token distribution in nats. Comes near the teacher's; below 0.01 it has collapsed.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    topk: int = 64
    """How many of the teacher's likeliest tokens are compared (NeMo-RL)."""
    mixed_kl_weight: float = 0.5
    """Weight w of KL(teacher || student); the rest is KL(student || teacher) (NeMo-RL)."""

    def __post_init__(self) -> None:
        if self.topk < 1:
            raise ValueError(f"topk is {self.topk}, expected a number of tokens from 1")
        if not 0 <= self.mixed_kl_weight <= 1:
            raise ValueError(f"mixed_kl_weight is {self.mixed_kl_weight}, expected a number from 0 to 1")


@hookimpl
def posttrain_token_statistics(logits, teacher_logits, config):
    """Both directions over the teacher's top tokens."""
    places = teacher_logits.topk(min(config.topk, teacher_logits.shape[-1]), -1).indices  # (n, k)
    student, teacher = (one.log_softmax(-1).gather(-1, places) for one in (logits, teacher_logits))  # (n, k)
    forward, reverse = tensors.kl_divergence(teacher, student), tensors.kl_divergence(student, teacher)
    return {
        "divergence": config.mixed_kl_weight * forward + (1 - config.mixed_kl_weight) * reverse,
        "topk_mass": student.detach().exp().sum(-1),
    }


@hookimpl
def posttrain_loss(policy):
    """The divergence, averaged over the tokens of the step."""
    view = policy.completion
    metrics = {name: PerToken(getattr(view, name).detach(), view.mask) for name in ("divergence", "topk_mass")}
    return PerToken(view.divergence, view.mask), metrics
