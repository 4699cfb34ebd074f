"""Generalised knowledge distillation: the student learns on its own answers what a teacher would have said.

Paper: Agarwal et al. 2023, "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
arXiv:2306.13649, section 3.

Loss in words: in each step the student answers the prompts itself with probability on_policy_share (lambda in the
paper), otherwise the answers are those of the data, or the teacher's with seq_kd. For every token of an answer the
student's distribution s of what comes next is compared with the teacher's p, and this is averaged over all tokens of
the step. Nothing is learnt about which answers get sampled:

    M = beta p + (1 - beta) s
    loss = beta KL(p || M) + (1 - beta) KL(s || M);   beta = 0: KL(p || s),   beta = 1: KL(s || p)

Differs from the paper: temperature, which is 0.9 here and 1 for the paper's student, divides the logits of both models
in the divergence too, as everywhere in posttrain; TRL divides them only when it samples. The mean is over the tokens
that are learnt from, also where the student has written them (TRL divides by the number of tokens in the data). The
paper's reward term is left out.

Metrics:
- entropy: of the student's next-token distribution in nats. Comes near the teacher's own; below 0.01 it has collapsed.
- teacher_entropy: of the teacher's on the same tokens. Much above entropy: the student is too sure of itself.
- on_policy: share of answers that the student gave; on_policy_share on average, 0 or 1 in a single step.
"""

from dataclasses import dataclass

from posttrain import PerToken, SampleRequest, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.5
    """Between KL(teacher || student) at 0 and KL(student || teacher) at 1 (TRL; the best one depends on the task)."""
    on_policy_share: float = 0.5
    """Share of steps whose answers the student gives (lambda in the paper; TRL). 1 is purely on-policy."""
    seq_kd: bool = False
    """Let the teacher, not the data, give the other answers (sequence-level distillation)."""

    def __post_init__(self) -> None:
        for name in ("beta", "on_policy_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number from 0 to 1")

    @property
    def learns_from_data(self) -> bool:
        """Whether any answers are the data's."""
        return self.on_policy_share < 1 and not self.seq_kd


@hookimpl
def posttrain_plan_rollouts(prompts, group_size, config, random):
    """One draw for the whole step decides who answers."""
    if random.random() < config.on_policy_share:
        plan = [SampleRequest(group_size)]
    elif config.seq_kd:
        plan = [SampleRequest(group_size, source="teacher")]
    else:
        plan = [SampleRequest(source="data")]
    return [plan for _ in prompts]


@hookimpl
def posttrain_token_statistics(logits, teacher_logits, config):
    """The divergence of each token, and two entropies for the log."""
    divergence = tensors.generalised_jsd(logits.log_softmax(-1), teacher_logits.log_softmax(-1), config.beta)
    return {
        "divergence": divergence,
        "teacher_entropy": tensors.token_entropy(teacher_logits),
    }


@hookimpl
def posttrain_loss(batch, policy):
    """The divergence, averaged over the tokens of the step."""
    view = policy.completion
    mine = view.logps.new_tensor([who == "policy" for who in batch.source])  # (B,)
    metrics = {name: PerToken(getattr(view, name), view.mask) for name in ("teacher_entropy",)}
    return PerToken(view.divergence, view.mask), metrics | {"on_policy": mine}
