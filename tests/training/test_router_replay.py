"""Runs with the sampler's experts: log-probs of a changed, a rounding and an equal sampler, and what carries them."""

import shutil

import pytest
import torch
from posttrain import Environment, Observation, api
from posttrain.contract.generation import Completion, Sampling
from posttrain.contract.rollout import Rollout
from posttrain.errors import SettingsError
from posttrain.generation.local.hf import HfGenerator
from posttrain.models.load import load_policy
from posttrain.models.probe import use_replay
from posttrain.network.chunked_head import TokenQuery
from posttrain.settings import Settings
from posttrain_testkit.tiny import count_of_a, tiny_tokenizer
from posttrain_testkit.tiny_experts import FAMILIES, tiny_experts

PROMPT = "abcdabcdabdc"
ROWS = [{"prompt": text} for text in (PROMPT, "dc", "ab", PROMPT + "a")]
#: Routers that weight one expert by 1 whatever their logits are: a change of the router changes the choice alone.
ONE = [family for family in FAMILIES if family != "deepseek_v3"]


def policy_of(family, dtype=torch.float64, **fields):
    settings = Settings(model="given").model
    policy = load_policy(tiny_experts(family, dtype=dtype, **fields), tiny_tokenizer(), settings).policy
    use_replay(policy)
    return policy


def sampled(policy):
    """Rows that the policy samples, with its log-probs and experts."""
    generator = HfGenerator(policy.model, tiny_tokenizer(), {2}, 16, routers=policy.routers)
    prompts = [torch.tensor(tiny_tokenizer().encode(row["prompt"], add_special_tokens=False)) for row in ROWS]
    found = generator.generate(prompts, Sampling(16), [[4 * place + k for k in range(4)] for place in range(4)])
    pairs = [(prompt, one) for prompt, own in zip(prompts, found, strict=True) for one in own]
    return [Rollout(0, prompt, one, {}, 0.0).sequence() for prompt, one in pairs], [one.logps for _, one in pairs]


@torch.no_grad()
def compared(policy, rows, logps):
    """Mean difference of log-probs without and with the sampler's experts, and the share of tokens that change them."""
    wanted = torch.cat(logps).double()
    means = []
    for replay in (False, True):
        results = policy(rows, TokenQuery(64, load=True, replay=replay))
        means.append(float((results["logps"].double() - wanted).abs().mean()))
    replayed, replaced = results["load"][:, -2:].sum(0).tolist()
    return *means, replaced / replayed


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_choice_is_undone_exactly(family):
    """Another router, between sampling and training, that would choose other experts with the same weights."""
    policy = policy_of(family, **({"num_experts_per_tok": 1} if family in ONE else {}))
    rows, logps = sampled(policy)
    assert compared(policy, rows, logps) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6), 0.0)
    draw = torch.Generator().manual_seed(0)
    for module, _ in policy.routers.modules:
        changed = module.weight if family in ONE else module.e_score_correction_bias
        changed.data += torch.randn(changed.shape, generator=draw) * float(
            changed.detach().std() if family in ONE else 1
        )
    chosen, replayed, share = compared(policy, rows, logps)
    print(
        f"{family}: {share:.0%} of tokens and layers change experts, log-probs by {chosen:.2g}, replayed {replayed:.1g}"
    )
    assert share > 0.2
    assert chosen > 0.05
    assert replayed < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sampler_in_bfloat16_is_closer_with_its_experts(family):
    sampler, trainer = (policy_of(family, dtype) for dtype in (torch.bfloat16, torch.float32))
    rows, logps = sampled(sampler)
    chosen, replayed, share = compared(trainer, rows, logps)
    print(
        f"{family}: {share:.2%} of tokens and layers change experts, log-probs by {chosen:.2g}, replayed {replayed:.2g}"
    )
    assert share < 0.1
    assert replayed < chosen or share == 0.0


@pytest.fixture
def train(tmp_path):
    calls = iter(range(100))

    def call(method="grpo", **changes):
        own = {"model": tiny_experts(dtype=torch.float64), "tokenizer": tiny_tokenizer(), "data": ROWS}
        own |= {"reward": count_of_a, "group_size": 4, "max_new_tokens": 6, "batch_size": 2, "steps": 4}
        own |= {"learning_rate": 0.05, "optimizer": "sgd", "dtype": "float64", "router_replay": True, "cache": "off"}
        own |= {"progress": "quiet", "report": False, "device": "cpu", "verify_saved": False}
        return api.train(method, **(own | {"output": str(tmp_path / str(next(calls)))} | changes))

    return call


def series(run, *names):
    return [[line[name] for name in ("loss", "grad_norm", "router_replaced_share", *names)] for line in run.metrics]


@pytest.mark.parametrize("method", ["grpo", "rloo", "dapo"])
def test_later_updates_keep_the_experts_of_the_rollouts(train, method):
    run = train(method, updates_per_rollout=2)
    shares = [line["router_replaced_share"] for line in run.metrics]
    assert shares[0::2] == [0.0, 0.0]  # hf samples from the policy itself
    assert min(shares[1::2]) > 0
    assert max(line["sampler_difference_max"] for line in run.metrics) < 1e-6
    off = train(method, updates_per_rollout=2, router_replay=False)
    assert "router_replaced_share" not in off.metrics[0]
    assert off.metrics[0]["loss"] == run.metrics[0]["loss"]
    assert off.metrics[1]["router_load_min"] != run.metrics[1]["router_load_min"]


def test_the_cut_of_a_step_changes_nothing(train):
    cuts = [{"micro_batch_size": 1}, {"packing": False, "micro_batch_size": 3}, {"gradient_checkpointing": True}]
    options = {"updates_per_rollout": 2, "router_loss_coefficient": 0.3, "steps": 2}
    whole = train(**options)
    for cut in cuts:
        for ours, theirs in zip(series(train(**options, **cut)), series(whole), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-6), cut


def test_a_resumed_run_has_the_bits_of_the_whole_one(train, tmp_path):
    """Resumed between two updates of the same rollouts, whose experts are in the checkpoint."""
    whole = train(updates_per_rollout=2, save_every=1, save_total=9)
    shutil.copytree(whole.path, tmp_path / "part")
    for step in (2, 3, 4):
        shutil.rmtree(tmp_path / "part" / "checkpoints" / f"step-{step}")
    objects = {"model": tiny_experts(dtype=torch.float64), "tokenizer": tiny_tokenizer(), "data": ROWS}
    resumed = api.resume(tmp_path / "part", **objects, reward=count_of_a)
    assert series(resumed) == series(whole)


def test_rollouts_that_a_method_keeps_keep_their_experts():
    completion = Completion(torch.tensor([4, 5]), torch.zeros(2), True, "", experts=torch.zeros(3, 2, 2).to(torch.int8))
    rollout = Rollout(0, torch.tensor([6]), completion, {}, 1.0)
    again = Rollout.of(rollout.kept(), 3)
    assert torch.equal(again.sequence().experts, completion.experts)
    older = {name: value for name, value in rollout.kept().items() if name != "experts"}
    assert Rollout.of(older, 3).sequence().experts is None


def test_a_sampler_that_runs_ahead_sends_its_experts(train):
    run = train(max_staleness=1, steps=3, learning_rate=0.2)
    assert run.metrics[0]["router_replaced_share"] == 0.0
    assert run.metrics[-1]["sampler_staleness_max"] == 1
    assert run.metrics[-1]["router_replaced_share"] > 0


class Echo(Environment):
    """Answers twice."""

    turns = 0

    def step(self, message):
        self.turns += 1
        return Observation("dd", float(message["content"].count("a")), done=self.turns == 3)


@pytest.mark.parametrize("rewritten", ["keep", "split"])
def test_every_turn_of_an_episode_is_trained_with_its_experts(train, rewritten):
    """Plain text goes on; a template that leaves text out of earlier turns makes each turn a text of its own."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('g')[-1] }}"
        "{% else %}{{ m.content }}{% endif %}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    talks = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    data = talks if rewritten == "split" else ROWS
    found = []

    options = {"environment": Echo, "tokenizer": tokenizer, "data": data, "max_new_tokens": 12}
    run = train(**options, rewritten_history=rewritten, updates_per_rollout=2)
    for example in run.source.buffer:
        (sequence,) = example.sequences["completion"]
        known = sequence.experts[:, 0, 0] >= 0
        assert len(known) == len(sequence)
        ends = [*(place - 1 for place in sequence.breaks), len(sequence) - 1]
        found.append(len(sequence.breaks))
        assert (~known).nonzero()[:, 0].tolist() == ends  # the last token of each text is never read
    assert (max(found) > 0) == (rewritten == "split")
    assert [line["router_replaced_share"] for line in run.metrics][0::2] == [0.0, 0.0]
    assert max(line["sampler_difference_max"] for line in run.metrics) < 1e-6


def test_what_cannot_replay_is_refused_in_one_sentence(train, tmp_path):
    with pytest.raises(SettingsError, match="'sft' learns from data"):
        train("sft", data=[{"prompt": "a", "completion": "b"}])
    with pytest.raises(SettingsError, match=r"generation 'http://127.0.0.1:1' does not return them to the run"):
        train(generation="http://127.0.0.1:1")
