"""LoRA through vLLM in the process: the base once, then the adapter alone."""

import copy

import peft
import pytest
import torch
from posttrain.contract.generation import Sampling
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.weights import weights_for

STOPS = frozenset({256, 257})


@pytest.fixture(scope="module")
def policy(kit):
    model = kit.made(tied=True)
    policy = kit.policy_of(peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=4, target_modules="all-linear")))
    kit.changed(policy.model, 3, size=3.0)  # an adapter begins as nothing
    return policy


@pytest.fixture(scope="module")
def engine(kit, policy, tokenizer, run_limits):
    from posttrain.generation.vllm.engine import EngineOptions, VllmEngine

    engine = VllmEngine(policy, tokenizer, run_limits(STOPS), EngineOptions(1.0, torch.float32, 16, 0.3))
    kit.give(engine, policy, 0)
    yield engine
    engine.close()


def test_the_core_gives_adapters_alone(engine, policy):
    weights = weights_for(policy.model, engine.abilities, 1, 0)
    assert weights.kind == "adapter"
    assert all(".lora_" in name for name, _ in weights.tensors())


def test_answers_are_those_of_transformers_with_the_adapter(kit, engine, policy, tokenizer, prompts):
    for version in (1, 2, 3):
        sampling = Sampling(12, greedy=True)
        found = engine.generate(prompts, sampling, [[0]] * len(prompts))
        with torch.no_grad():
            expected = HfGenerator(policy.model, tokenizer, set(STOPS), 16).generate(prompts, sampling, [[0]] * 4)
            with policy.model.disable_adapter():
                bare = HfGenerator(policy.model, tokenizer, set(STOPS), 16).generate(prompts, sampling, [[0]] * 4)
        assert [one.ids.tolist() for (one,) in found] == [one.ids.tolist() for (one,) in expected]
        assert [one.ids.tolist() for (one,) in found] != [one.ids.tolist() for (one,) in bare]
        for prompt, group in zip(prompts, engine.generate(prompts, Sampling(8), [[1, 2]] * 4), strict=True):
            for one in group:
                assert torch.allclose(one.logps, kit.logps_of(policy.model, prompt, one), atol=1e-4)
                assert set(one.versions.tolist()) == {version - 1}
        kit.changed(policy.model, version)
        kit.give(engine, policy, version)
