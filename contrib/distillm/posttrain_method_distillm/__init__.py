"""DistiLLM: a divergence from a mixture, whose gradient stays small, and own answers that are used more than once.

Paper: Ko et al. 2024, "DistiLLM: Towards Streamlined Distillation for Large Language Models", arXiv:2402.03898,
sections 3.1 and 3.2.

Loss in words: KL(p || s) explodes where the student s gives nothing to what the teacher p likes. Measured to a mixture
with a little of the other side it does not:

    skl:   KL(p || alpha p + (1 - alpha) s)        srkl:  KL(s || (1 - alpha) p + alpha s)

averaged over all tokens of the step. In each step the answers are the student's with probability student_share, else
the data's. Generating is what costs: of the steps with the student's answers only the share 1 - replay_share
generates, the others draw from a buffer of earlier answers.

Differs from the paper: student_share is constant; the paper starts at 0 and raises it whenever the validation loss
rises. The buffer's answers are drawn evenly.

Metrics:
- divergence: of a token in nats. Falls towards 0.
- entropy: of the student's next-token distribution in nats. Comes near the teacher's; below 0.01 it has collapsed.
- on_policy: share of answers that the student has just given. replayed: share from the buffer. The rest are the
  data's."""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, Rollout, SampleRequest, Selection, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    divergence: Literal["srkl", "skl"] = "srkl"
    """From the student to the mixture (the paper's best for instructions), or from the teacher."""
    alpha: float = 0.1
    """Share of the own side in the mixture (the paper)."""
    student_share: float = 0.5
    """Share of steps whose answers are the student's."""
    replay_share: float = 0.5
    """Share of those that take them from the buffer."""
    buffer_size: int = 1000
    """Answers that are kept (the paper)."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}, expected a number between 0 and 1")
        for name in ("student_share", "replay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number from 0 to 1")

    @property
    def learns_from_data(self) -> bool:
        """Whether any answers are the data's."""
        return self.student_share < 1


@hookimpl
def posttrain_plan_rollouts(prompts, group_size, config, state, random):
    """One draw for the whole step decides who answers; where the buffer does, the data's answers hold its places."""
    own, again = random.random() < config.student_share, random.random() < config.replay_share
    state["replay"] = own and again and bool(state.get("buffer"))
    fresh = own and not state["replay"]
    place = [SampleRequest(group_size)] if fresh or not prompts[0].get("completion") else [SampleRequest(source="data")]
    return [place for _ in prompts]


@hookimpl
def posttrain_select(rollouts, state, config):
    """The buffer's answers where it is its turn; what the student has just said is kept."""
    buffer = state.setdefault("buffer", [])
    chosen = rollouts.items
    if state.get("replay"):
        state["draws"] = state.get("draws", 0) + 1
        generator = torch.Generator().manual_seed(state["draws"])
        places = torch.randint(len(buffer), (len(chosen),), generator=generator).tolist()
        kept = [{**buffer[place], "source": "replay"} for place in places]
        chosen = [Rollout.of(one, item.group) for one, item in zip(kept, chosen, strict=True)]
    else:
        buffer += [item.kept() for item, who in zip(chosen, rollouts.source, strict=True) if who == "policy"]
        del buffer[: -config.buffer_size]
    return Selection(chosen)


@hookimpl
def posttrain_token_statistics(logits, teacher_logits, config):
    """The skewed divergence of each token."""
    student, teacher = logits.log_softmax(-1), teacher_logits.log_softmax(-1)  # (n, V)
    own, other = (teacher, student) if config.divergence == "skl" else (student, teacher)
    share = torch.tensor([config.alpha, 1 - config.alpha]).log().tolist()
    mixture = torch.logaddexp(own + share[0], other + share[1])
    entropy = torch.special.entr(student.detach().exp()).sum(-1)
    return {"divergence": (own.exp() * (own - mixture)).sum(-1), "entropy": entropy}


@hookimpl
def posttrain_loss(batch, policy):
    """The divergence, averaged over the tokens of the step."""
    view = policy.completion
    metrics = {name: PerToken(getattr(view, name).detach(), view.mask) for name in ("divergence", "entropy")}
    for name, who in (("on_policy", "policy"), ("replayed", "replay")):
        metrics[name] = view.logps.new_tensor([one == who for one in batch.source])  # (B,)
    return PerToken(view.divergence, view.mask), metrics
