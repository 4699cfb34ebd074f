"""How far a sampler's experts and log-probs are from the trainer's, with and without its experts replayed.

Run with ``python benchmarks/router_replay.py`` (a minute). A Qwen3-MoE with random weights, 4 layers of 16 experts of
which a token has 4, samples 64 answers of 64 tokens; the trainer computes their log-probs with the router's own choice
and with the sampler's. The sampler is the trainer's model in bfloat16, or the model before steps of SGD on its answers.
"""

from __future__ import annotations

import copy

import torch
from posttrain.contract.generation import Sampling
from posttrain.contract.rollout import Rollout
from posttrain.contract.views import Sequence
from posttrain.generation.local.hf import HfGenerator
from posttrain.models.load import load_policy
from posttrain.models.probe import use_replay
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.token_model import TokenModel
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_tokenizer
from posttrain_testkit.tiny_experts import tiny_experts
from torch import Tensor

SIZES = {"num_hidden_layers": 4, "num_experts": 16, "num_experts_per_tok": 4, "hidden_size": 64, "head_dim": 32}
RATE = 0.003


def policy_of(model: torch.nn.Module) -> TokenModel:
    """Return a policy whose routers take given experts."""
    policy = load_policy(model, tiny_tokenizer(), Settings(model="given").model).policy
    use_replay(policy)
    return policy


def sampled(policy: TokenModel) -> tuple[list[Sequence], Tensor]:
    """Return answers with their experts, and the sampler's log-probs ``(n,)`` of them."""
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(4, 13, (8,), generator=draw) for _ in range(16)]
    generator = HfGenerator(policy.model, tiny_tokenizer(), set(), 64, routers=policy.routers)
    found = generator.generate(prompts, Sampling(64), [[4 * place + k for k in range(4)] for place in range(16)])
    pairs = [(prompt, one) for prompt, own in zip(prompts, found, strict=True) for one in own]
    return [Rollout(0, p, one, {}, 0.0).sequence() for p, one in pairs], torch.cat([one.logps for _, one in pairs])


@torch.no_grad()
def report(name: str, trainer: TokenModel, rows: list[Sequence], logps: Tensor) -> None:
    """Print the shares of changed experts and the differences of log-probs."""
    differences = []
    for replay in (False, True):
        parts = [trainer(rows[start : start + 8], TokenQuery(256, replay=replay)) for start in range(0, len(rows), 8)]
        differences.append((torch.cat([part["logps"] for part in parts]) - logps).abs())
    assert trainer.routers is not None
    own = []
    for row in rows:  # the trainer's own choices, with its own choices in the layers below
        with trainer.routers.watched() as layers:
            trainer([row], TokenQuery(256))
        own.append(torch.stack([layer.experts for layer in layers], 1)[:-1].sort(-1).values)
    theirs = [row.experts[:-1].long().sort(-1).values for row in rows if row.experts is not None]
    changed = (torch.cat(own) != torch.cat(theirs)).any(-1)  # (n, layers)
    each, any_layer = changed.float().mean(), changed.any(1).float().mean()
    print(
        f"{name:<28} experts of {each:6.2%} of tokens and layers, of {any_layer:6.2%} of tokens; log-probs by "
        f"{differences[0].mean():.5f} (at most {differences[0].max():.3f}), "
        f"replayed {differences[1].mean():.5f} ({differences[1].max():.3f})"
    )


def main() -> None:
    """Compare both samplers."""
    model = tiny_experts("qwen3_moe", **SIZES)
    trainer = policy_of(model)
    report("the same weights", trainer, *sampled(trainer))
    report("bfloat16", trainer, *sampled(policy_of(copy.deepcopy(model).bfloat16())))
    rows, logps = sampled(trainer)
    for step in range(1, 17):
        loss = -trainer(rows[4 * (step - 1) : 4 * step], TokenQuery(256, replay=True))["logps"].mean()
        loss.backward()
        with torch.no_grad():
            for parameter in trainer.parameters():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
                    parameter.grad = None
        if step in (1, 4, 16):
            report(f"{step} steps of SGD, rate {RATE}", trainer, rows, logps)


if __name__ == "__main__":
    main()
