"""Sampling behind pictures: log-probs are the trainer's, greedy answers those of transformers."""

import pickle

import pytest
import torch
import transformers
from posttrain.contract.generation import Sampling
from posttrain.contract.views import Sequence
from posttrain.data import prepare, read_rows
from posttrain.errors import SettingsError
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.local.prefill import Network
from posttrain.generation.local.speculation import Speculation
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.image_reader import reader_of
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from posttrain_testkit.tiny_vision import FAMILIES, picture, shown

ROWS = [
    {"prompt": [shown(1, "what")]},
    {"prompt": [shown(2, "what")]},  # another picture behind the same ids
    {"prompt": [{"role": "user", "content": "hello there"}]},
    {"prompt": [shown("see ", 1, " and ", 3, "ok")]},
]


def loaded(folder):
    settings = Settings(model=folder)
    tokenizer = load_tokenizer(folder, settings.model)
    policy = load_policy(folder, tokenizer, settings.model).policy.eval()
    examples = prepare(read_rows(ROWS, ("prompt",), settings.data), tokenizer, settings.data, {2}, None)
    return policy, tokenizer, [example.sequences["prompt"][0] for example in examples]


def plain_answer(model, processor, row, prompt):
    content = row["prompt"][0]["content"]
    pictures = [part["image"] for part in content if part["type"] == "image"] if isinstance(content, list) else []
    text = processor.tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    if type(processor).__name__ == "PaliGemmaProcessor":  # it has no conversations
        inputs = {"input_ids": prompt[None], "token_type_ids": torch.zeros_like(prompt)[None]}
        inputs |= processor.image_processor(pictures, return_tensors="pt") if pictures else {}
    elif pictures:
        inputs = processor(text=[text], images=[pictures], return_tensors="pt", add_special_tokens=False)
    else:
        inputs = processor.tokenizer([text], return_tensors="pt", add_special_tokens=False)
        inputs.pop("token_type_ids", None)
    assert inputs["input_ids"][0].tolist() == prompt.tolist()
    made = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=2)
    return made[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_to_pictures(vision, family):
    policy, tokenizer, prompts = loaded(vision(family))
    generator = HfGenerator(policy.model, tokenizer, {2}, 3)  # fewer than the samples: some wait
    ids, images = [prompt.ids for prompt in prompts], [list(prompt.images) for prompt in prompts]
    for prompt, own in zip(
        prompts, generator.generate(ids, Sampling(6), [[1, 2], [1, 2], [3], [4]], images), strict=True
    ):
        for completion in own:
            whole = torch.cat([prompt.ids, completion.ids])
            row = Sequence(whole, torch.arange(len(whole)) >= len(prompt), images=prompt.images)
            with torch.no_grad():
                trained = policy([row], TokenQuery())["logps"]
            assert torch.allclose(trained, completion.logps, atol=1e-4)
    greedy = generator.generate(ids, Sampling(6, temperature=0.0), [[0]] * 4, images)
    model = transformers.AutoModelForImageTextToText.from_pretrained(vision(family), attn_implementation="eager").eval()
    processor = reader_of(tokenizer).processor
    for row, prompt, (completion,) in zip(ROWS, prompts, greedy, strict=True):
        assert completion.ids.tolist() == plain_answer(model, processor, row, prompt.ids)


def test_guesses_from_the_text_change_no_answer_to_pictures(vision):
    """And a draft model, which sees no picture, is refused."""
    policy, tokenizer, prompts = loaded(vision("qwen2.5-vl"))
    ids, images = [prompt.ids for prompt in prompts], [list(prompt.images) for prompt in prompts]
    how = Speculation("ngram", 4)
    found = [
        HfGenerator(policy.model, tokenizer, set(), 3, speculation=one).generate(
            ids, Sampling(30, temperature=0.05), [[1, 2], [1, 2], [3], [4]], images
        )
        for one in (None, how)
    ]
    for plain, guessed in zip(*found, strict=True):
        assert [one.ids.tolist() for one in guessed] == [one.ids.tolist() for one in plain]
    assert how.tried
    draft = Speculation("draft", 4, Network(tiny_model()), "small")
    with pytest.raises(SettingsError, match="speculate is 'draft' and a prompt has images"):
        HfGenerator(policy.model, tokenizer, {2}, 3, speculation=draft).generate(ids, Sampling(3), [[1]] * 4, images)


def test_a_tokenizer_travels_with_what_reads_images(vision):
    _, tokenizer, prompts = loaded(vision("qwen2.5-vl"))
    moved, images = pickle.loads(pickle.dumps((tokenizer, prompts[0].images)))
    inputs = reader_of(moved).inputs(images[0])
    assert torch.equal(inputs["pixel_values"], reader_of(tokenizer).inputs(prompts[0].images[0])["pixel_values"])


def test_a_generator_of_text_refuses_pictures(vision):
    _, tokenizer, prompts = loaded(vision("qwen2.5-vl"))
    del tokenizer
    generator = HfGenerator(tiny_model().eval(), tiny_tokenizer(), {2}, 3)
    with pytest.raises(SettingsError, match="Prompts have images, which this generator cannot show to a model"):
        generator.generate([torch.tensor([5])], Sampling(3), [[1]], [list(prompts[0].images)])


def test_the_picture_matters_and_its_place_in_memory_does_not(vision):
    policy, tokenizer, prompts = loaded(vision("llava"))
    generator = HfGenerator(policy.model, tokenizer, {2}, 8)
    ids = [prompts[0].ids] * 3
    again = [reader_of(tokenizer).read(picture(1))[0]]
    own = [list(prompts[0].images), list(prompts[1].images), again]
    first, other, same = generator.generate(ids, Sampling(4), [[1], [1], [1]], own)
    assert torch.equal(first[0].logps, same[0].logps)
    assert not torch.equal(first[0].logps, other[0].logps)


def test_a_sampler_of_sharded_weights_runs_no_pass_of_its_own(vision, monkeypatch):
    """What a pass tells of a family is known from loading; weights that are sharded since then can run none."""
    policy, tokenizer, _ = loaded(vision("gemma3"))

    def broken(token_type_ids=None, **_):
        raise AssertionError("a pass over sharded weights")

    monkeypatch.setattr(policy.decoder, "forward", broken)
    assert not HfGenerator(policy.model, tokenizer, {2}, 3)._network.images.prefix
