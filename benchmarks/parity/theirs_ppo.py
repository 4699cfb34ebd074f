"""TRL's PPOTrainer, which has a loop of its own; here it takes the completions of a file."""

from __future__ import annotations

import time
from typing import Any

import cases
import material
import torch
from theirs_common import COMPLETIONS, Given, Stored, Vowels, padded, rewarded, unpadded


def reinforce_plus_plus(given: Given) -> Any:
    """PPO whose values are 0, undiscounted: token rewards, whitened over the step. See README.md."""
    policy_gradient = {"lam": 1.0, "vf_coef": 0.0, "gamma": given.case.options["gamma"]}
    clip = {"kl_coef": given.case.options["beta"], "cliprange": given.case.options["epsilon"]}
    return _ppo(given, policy_gradient | clip, given.load("model"), NoValue(), given.rollouts())


def ppo(given: Given) -> Any:
    """PPO whose critic is a head on the policy's own layers, on answers that end with the last token. See README.md."""
    options = given.case.options
    critic = {
        "vf_coef": options["value_weight"],
        "cliprange_value": options["value_epsilon"],
        "lam": options["gae_lambda"],
    }
    policy_gradient = {"kl_coef": options["kl_weight"], "cliprange": options["epsilon"], "gamma": options["gamma"]}
    policy = given.load("model")
    value = SharedValue(policy.model, policy.config.hidden_size)
    return _ppo(given, policy_gradient | critic, policy, value, given.rollouts())


def _ppo(given: Given, options: dict[str, Any], policy: Any, value: torch.nn.Module, stored: Stored) -> Any:
    """TRL's PPOTrainer on stored completions, in order, with a reward function for a reward model."""
    from transformers import DataCollatorWithPadding
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    given.tokenizer.padding_side = "left"
    config = PPOConfig(
        **given.shared(COMPLETIONS),
        **options,
        total_episodes=COMPLETIONS * given.case.steps // given.case.updates,
        num_ppo_epochs=given.case.updates,
        temperature=1.0,
        response_length=material.LONGEST,
        stop_token="eos",
        num_sample_generations=0,
    )
    rows = given.rows().map(lambda row: {"input_ids": given.tokenizer(row["prompt"])["input_ids"]})
    copies = rows.select([place for place in range(len(rows)) for _ in range(cases.GROUP)])
    copies = copies.remove_columns("prompt")
    trainer = PPOTrainer(config, given.tokenizer, policy, given.load("model"), Vowels(), copies, value)
    trainer.dataloader = torch.utils.data.DataLoader(
        copies, batch_size=COMPLETIONS, collate_fn=DataCollatorWithPadding(given.tokenizer)
    )
    ppo_trainer.batch_generation = _batch_generation(stored, ppo_trainer.forward)
    ppo_trainer.get_reward = rewarded(ppo_trainer.get_reward, given.tokenizer)
    _record(trainer)
    return trainer


class SharedValue(torch.nn.Module):
    """A critic: one more head, at first 0, on the layers that the policy has."""

    base_model_prefix = "body"

    def __init__(self, body: Any, width: int):
        super().__init__()
        self.body, self.score = body, torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(self.score.weight)
        torch.nn.init.zeros_(self.score.bias)


class NoValue(torch.nn.Module):
    """A critic for which every state is worth 0."""

    base_model_prefix = "body"

    def __init__(self) -> None:
        super().__init__()
        self.body, self.score = Zeros(), torch.nn.Identity()


class Zeros(torch.nn.Module):
    """A model whose only layer is one column of zeros."""

    def forward(self, input_ids: torch.Tensor, **named: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(hidden_states=(torch.zeros(*input_ids.shape, 1),))


def _batch_generation(stored: Stored, forward: Any) -> Any:
    """TRL's function of that name, with stored completions and the logits that the policy gives them."""

    def batch_generation(policy: Any, queries: torch.Tensor, size: int, pad: int, settings: Any) -> Any:
        answers, _ = padded(stored(unpadded(queries, queries != pad)), "right")  # (B, T)
        sequences = torch.cat([queries, answers], dim=1)
        return sequences, forward(policy, sequences, pad).logits[:, queries.shape[1] - 1 : -1]

    return batch_generation


def _record(trainer: Any) -> None:
    """Keep loss and gradient norm of each update, and clip as the others do: this trainer's own loop never clips."""
    backward, step, begun = (trainer.accelerator.backward, trainer.optimizer.step, time.perf_counter())
    trainer.recorded = []

    def backward_and_keep(loss: torch.Tensor, **named: Any) -> None:
        trainer.recorded.append({"loss": loss.item()})
        backward(loss, **named)

    def clip_and_step(*given: Any, **named: Any) -> Any:
        nonlocal begun
        norm = torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), cases.MAX_GRAD_NORM)
        now = time.perf_counter()
        trainer.recorded[-1] |= {"grad_norm": norm.item(), "seconds": now - begun}
        begun = now
        return step(*given, **named)

    trainer.accelerator.backward, trainer.optimizer.step = (backward_and_keep, clip_and_step)


BUILDERS = {"reinforce-plus-plus": reinforce_plus_plus, "ppo": ppo}
