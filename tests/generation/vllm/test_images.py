"""Images before vLLM: the trainer's tokens and numbers, features of the newest encoder, families that it cannot run."""

import json

import pytest
import torch
from posttrain.cli.main import main
from posttrain.contract.generation import Sampling
from posttrain.data import prepare, read_rows
from posttrain.errors import ModelError
from posttrain.generation.local.hf import HfGenerator
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.settings import Settings
from posttrain_testkit.tiny_vision import picture, save_tiny_vision, shown

ROWS = [
    {"prompt": [shown(1, "what")]},
    {"prompt": [shown(2, "what")]},  # another picture behind the same ids
    {"prompt": [{"role": "user", "content": "hello there"}]},
    {"prompt": [shown("see ", 1, " and ", 3, "ok")]},
]
GREEDY = Sampling(6, temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Idefics3, with heads of a size that vLLM's attention on a CPU knows."""
    return str(save_tiny_vision("idefics3", tmp_path_factory.mktemp("model"), hidden_size=64, initializer_range=0.2))


def loaded(folder):
    settings = Settings(model=folder, train_vision="all")
    tokenizer = load_tokenizer(folder, settings.model)
    policy = load_policy(folder, tokenizer, settings.model).policy.eval()
    examples = prepare(read_rows(ROWS, ("prompt",), settings.data), tokenizer, settings.data, {2}, None)
    prompts = [example.sequences["prompt"][0] for example in examples]
    return policy, tokenizer, [prompt.ids for prompt in prompts], [list(prompt.images) for prompt in prompts]


def started(policy, tokenizer, run_limits):
    from posttrain.generation.vllm.engine import EngineOptions, VllmEngine

    return VllmEngine(policy, tokenizer, run_limits(frozenset({2})), EngineOptions(0.0, torch.float32, 8, 0.3))


def test_greedy_answers_are_the_local_ones_before_and_after_an_update_of_the_encoder(kit, folder, run_limits):
    policy, tokenizer, ids, images = loaded(folder)
    engine = started(policy, tokenizer, run_limits)
    try:
        before = []
        for version in range(2):
            kit.give(engine, policy, version)
            mine = engine.generate(ids, GREEDY, [[0]] * 4, images)
            with torch.no_grad():
                theirs = HfGenerator(policy.model, tokenizer, {2}, 4).generate(ids, GREEDY, [[0]] * 4, images)
            for (one,), (other,) in zip(mine, theirs, strict=True):
                assert one.ids.tolist() == other.ids.tolist()
                assert torch.allclose(one.logps, other.logps, atol=1e-4)
            before.append([one.ids.tolist() for (one,) in mine])
            with torch.no_grad():
                for name, parameter in policy.model.named_parameters():
                    if "vision" in name or "connector" in name:
                        parameter.mul_(1.5)
        assert before[0][0] != before[0][1]
        assert before[0][0] != before[1][0]  # the features were made anew
        assert before[0][2] == before[1][2]
        with pytest.raises(ModelError, match="vLLM reads the images of Idefics3ForConditionalGeneration as 3 tokens"):
            engine._check_read([1, 2], [1, 2, 3])
    finally:
        engine.close()


def test_an_answer_from_the_command_line(folder, tmp_path, capsys):
    picture(1).save(tmp_path / "one.png")
    words = ["generate", folder, "--prompt", "what", "--image", str(tmp_path / "one.png"), "--max-new-tokens", "5"]
    answers = []
    for backend in ("hf", "vllm"):
        assert main([*words, "--generation", backend, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)[0]["completion"])
    assert answers[0] == answers[1]


def test_a_family_that_the_engine_lacks_is_refused_by_name(tmp_path, run_limits):
    folder = save_tiny_vision("smolvlm", tmp_path, hidden_size=64)
    policy, tokenizer, _, _ = loaded(str(folder))
    with pytest.raises(ModelError, match=r"^vLLM cannot run SmolVLMForConditionalGeneration here: .* --generation hf"):
        started(policy, tokenizer, run_limits)
