"""Images before vLLM: the trainer's tokens and numbers, features of the newest encoder, families that it cannot run."""

import functools
import json
from contextlib import contextmanager
from dataclasses import replace

import posttrain
import pytest
import torch
from posttrain import Environment, Observation
from posttrain.cli.main import main
from posttrain.contract.generation import Sampling
from posttrain.contract.rollout import Rollout
from posttrain.data import prepare, read_rows
from posttrain.errors import ModelError
from posttrain.generation.local.hf import HfGenerator
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.image_reader import reader_of
from posttrain.network.images import language_part
from posttrain.settings import Settings
from posttrain_testkit.tiny_vision import picture, save_tiny_vision, shown

ROWS = [
    {"prompt": [shown(1, "what")]},
    {"prompt": [shown(2, "what")]},  # another picture behind the same ids
    {"prompt": [{"role": "user", "content": "hello there"}]},
    {"prompt": [shown("see ", 1, " and ", 3, "ok")]},
]
GREEDY = Sampling(6, temperature=0.0)


#: Fields with which vLLM's attention on a CPU knows the size of heads, and answers that depend on more than noise.
TEXT = {"hidden_size": 64, "head_dim": 32, "initializer_range": 0.2}
#: Families that the engine runs on a CPU.
RUN = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "idefics3", "smolvlm", "llava", "internvl")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a family's model."""
    return functools.cache(lambda family: str(save_tiny_vision(family, tmp_path_factory.mktemp(family), **TEXT)))


def loaded(folder, **options):
    settings = Settings(model=folder, **{"train_vision": "all"} | options)
    tokenizer = load_tokenizer(folder, settings.model)
    policy = load_policy(folder, tokenizer, settings.model).policy.eval()
    examples = prepare(read_rows(ROWS, ("prompt",), settings.data), tokenizer, settings.data, {2}, None)
    prompts = [example.sequences["prompt"][0] for example in examples]
    return policy, tokenizer, [prompt.ids for prompt in prompts], [list(prompt.images) for prompt in prompts]


@contextmanager
def started(policy, tokenizer, run_limits):
    from posttrain.generation.vllm.engine import EngineOptions, VllmEngine

    engine = VllmEngine(policy, tokenizer, run_limits(frozenset({2})), EngineOptions(0.0, torch.float32, 8, 0.3))
    try:
        yield engine
    finally:
        engine.close()


def same_answers(engine, policy, tokenizer, ids, images):
    """Greedy answers of the engine, which are those of transformers to the log-prob, and the trainer's."""
    mine = engine.generate(ids, GREEDY, [[0]] * 4, images)
    with torch.no_grad():
        theirs = HfGenerator(policy.model, tokenizer, {2}, 4).generate(ids, GREEDY, [[0]] * 4, images)
    for prompt, pictures, (one,), (other,) in zip(ids, images, mine, theirs, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        torch.testing.assert_close(one.logps, other.logps, rtol=0, atol=1e-4)
        row = Rollout(0, prompt, one, {}, images=tuple(pictures)).sequence()
        with torch.no_grad():
            torch.testing.assert_close(one.logps, policy([row], TokenQuery())["logps"], rtol=0, atol=1e-4)
    return [one.ids.tolist() for (one,) in mine]


def moved(policy, seed, size):
    """Change everything that is trained."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * size)


@pytest.mark.parametrize("family", RUN)
def test_answers_are_the_local_ones_before_and_after_updates_of_all_weights(kit, saved, run_limits, family):
    policy, tokenizer, ids, images = loaded(saved(family))
    with started(policy, tokenizer, run_limits) as engine:
        found = []
        for version in range(3):
            kit.give(engine, policy, version)
            found.append(same_answers(engine, policy, tokenizer, ids, images))
            if version == 0:  # the encoder and the projector alone: features are made anew
                language = {id(one) for one in language_part(policy.decoder).parameters()}
                with torch.no_grad():
                    for parameter in policy.decoder.parameters():
                        if id(parameter) not in language:
                            parameter.mul_(1.5)
            else:
                moved(policy, version, 0.05)
        assert found[0][0] != found[0][1]  # another picture behind the same ids
        assert found[0][0] != found[1][0]
        assert found[0][2] == found[1][2]  # text alone
        assert found[1][2] != found[2][2]
        with pytest.raises(ModelError, match=r"vLLM reads the images of \w+ForConditionalGeneration as 3 tokens"):
            engine._check_read([1, 2], [1, 2, 3])


@pytest.mark.parametrize("seen", ["none", "projector", "all"])
def test_adapters_reach_the_engine_wherever_they_lie(kit, saved, run_limits, seen):
    """vLLM applies an adapter to text alone, so one on an encoder or projector comes merged."""
    policy, tokenizer, ids, images = loaded(saved("llava"), lora=True, lora_rank=8, train_vision=seen)
    with started(policy, tokenizer, run_limits) as engine:
        assert engine.abilities.adapters == (seen == "none")
        found = []
        for version in range(2):
            kit.give(engine, policy, version)
            found.append(same_answers(engine, policy, tokenizer, ids, images))
            moved(policy, version, 0.2)
        assert found[0] != found[1]


def test_a_placeholder_that_the_model_wrote_itself_is_text(kit, saved, run_limits):
    policy, tokenizer, _, _ = loaded(saved("llava"))
    reader = reader_of(tokenizer)
    (first, text), (second, _) = reader.read(picture(1), 0), reader.read(picture(2), 1)
    piece = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    said = torch.tensor([20, reader.token, 21])
    row = torch.cat([piece, said, piece, said])
    images = [[first, replace(second, start=len(piece) + len(said))]] * 4
    with started(policy, tokenizer, run_limits) as engine:
        kit.give(engine, policy, 0)
        same_answers(engine, policy, tokenizer, [row] * 4, images)


class Album(Environment):
    """Shows a picture before the first turn and after each of two, drawn over the one before; worth the letters a."""

    def reset(self, row, seed):
        self.seeds, self.canvas = list(row["seeds"]), picture(9)
        return [{"role": "user", "content": [{"type": "image", "image": self.canvas}]}]

    def step(self, message):
        self.canvas.paste(picture(self.seeds.pop(0)))
        content = [{"type": "image", "image": self.canvas}, {"type": "text", "text": "and"}]
        return Observation([{"role": "user", "content": content}], message["content"].count("a"), done=not self.seeds)


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
def test_episodes_that_show_pictures_are_those_of_hf(saved, tmp_path, run_limits, family):
    rows = [{"prompt": [shown("look ", seed)], "seeds": [seed + 10, seed + 20]} for seed in (1, 2)]
    options = {"batch_size": 2, "group_size": 4, "max_turns": 3, "max_new_tokens": 8, "learning_rate": 1e-3}
    options |= {"stop": list("abcdefghijklmnopq"), "max_length": 120, "train_vision": "all", "environment": Album}
    options |= {"progress": "quiet", "report": False, "cache": "off", "verify_saved": False, "data": rows}
    episodes = []
    for name, more in [("hf", {"temperature": 0.0}), ("vllm", {"temperature": 0.0}), ("vllm", {})]:
        output = str(tmp_path / f"{name}-{len(episodes)}")
        run = posttrain.train("grpo", model=saved(family), output=output, steps=2, generation=name, **options, **more)
        lines = (run.path / "episodes.jsonl").read_text().splitlines()
        episodes.append([json.loads(line)["messages"] for line in lines])
        assert all(line["sampler_difference_max"] < 1e-4 for line in run.metrics)
    assert episodes[0] == episodes[1] != episodes[2]
    assert any(len([one for one in messages if one["role"] == "assistant"]) == 2 for messages in episodes[0])


@pytest.mark.parametrize("family", ["idefics3", "qwen3-vl"])
def test_an_answer_from_the_command_line(saved, tmp_path, capsys, family):
    picture(1).save(tmp_path / "one.png")
    words = ["generate", saved(family), "--prompt", "what", "--image", str(tmp_path / "one.png")]
    answers = []
    for backend in ("hf", "vllm"):
        assert main([*words, "--max-new-tokens", "5", "--generation", backend, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)[0]["completion"])
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gemma3", "it reads images in both directions, and vLLM's attention on this device in one"),
        ("paligemma", "it reads a whole prompt in both directions, and vLLM its text in one"),
    ],
)
def test_a_family_that_the_engine_reads_otherwise_is_refused_by_name(saved, run_limits, family, reason):
    policy, tokenizer, _, _ = loaded(saved(family))
    said = rf"^vLLM cannot run \w+ForConditionalGeneration here: {reason}\. .* hf\.$"
    with pytest.raises(ModelError, match=said), started(policy, tokenizer, run_limits):
        pass
