"""A process reward model as a reward: the probabilities of a completion's lines, read where training marked them."""

import math

import pytest
import torch
from posttrain.data import prepare, read_rows
from posttrain.errors import ModelError, SettingsError
from posttrain.rewards import load_rewards
from posttrain.rewards.model import reward_model
from posttrain.rewards.steps import encode_steps
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from transformers import LlamaForTokenClassification


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "steps"
    tiny_model("step-head").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def expected(folder, prompt, lines):
    """The probability of each line, each read from a text that ends with it: a causal model sees nothing behind."""
    model = LlamaForTokenClassification.from_pretrained(folder).eval()
    found = []
    for count in range(1, len(lines) + 1):
        text = prompt + "".join(line + "\n" for line in lines[:count])
        ids = torch.tensor([tiny_tokenizer().encode(text, add_special_tokens=False)])
        with torch.no_grad():
            found.append(model(input_ids=ids).logits[0, -1].softmax(-1)[1].item())
    return found


def test_smallest_probability_or_the_product(folder):
    """In a batch of unequal lengths; blank lines are no steps, an answer without text is worth nothing."""
    score = reward_model(folder, batch_size=2, device="cpu")
    prompts, completions = ["ab", "c", "a"], ["abc\n\nefg\na", "bb", "\n \n"]
    probabilities = [expected(folder, "ab", ["abc", "efg", "a"]), expected(folder, "c", ["bb"])]
    assert score(prompts, completions) == pytest.approx([*map(min, probabilities), 0.0], abs=1e-5)
    found = score(prompts, completions, combine="product")
    assert found == pytest.approx([*map(math.prod, probabilities), 0.0], abs=1e-5)
    assert score.__name__ == "steps"


def test_steps_are_encoded_as_in_training():
    """Text, and a conversation under its template: same tokens, same marks."""
    tokenizer = tiny_tokenizer()
    for prompt in ("ab", [{"role": "user", "content": "ab"}]):
        rows = [{"prompt": prompt, "completions": ["abc", "ef"], "labels": [True, False]}]
        settings = Settings(max_length=64)
        (example,) = prepare(read_rows(rows, ("stepwise",), settings.data), tokenizer, settings.data, {2}, None)
        (sequence,) = example.sequences["completion"]
        tokens = encode_steps(tokenizer, prompt, "abc\nef")
        assert tokens.ids.tolist() == sequence.ids.tolist()
        ends = sequence.trained.nonzero()[:, 0][sequence.per_token["step_end"]]
        assert tokens.marks == ends.tolist()


def test_it_is_a_reward_with_an_option(folder):
    (reward,) = load_rewards([str(folder)], {"steps.combine": "product"})
    whole = reward.function(["ab"], ["abc\nef"])
    assert whole == pytest.approx([math.prod(expected(folder, "ab", ["abc", "ef"]))], abs=1e-5)
    (reward,) = load_rewards([str(folder)], {"steps.combine": "mean"})
    with pytest.raises(SettingsError) as caught:
        reward.function(["ab"], ["abc"])
    assert str(caught.value) == "reward option 'combine' is 'mean', expected minimum or product."


def test_a_classifier_of_words_is_refused(tmp_path):
    model = tiny_model("step-head")
    model.config.num_labels = 9
    model.save_pretrained(tmp_path / "words")
    LlamaForTokenClassification(model.config).save_pretrained(tmp_path / "words")
    tiny_tokenizer().save_pretrained(tmp_path / "words")
    with pytest.raises(ModelError) as caught:
        reward_model(tmp_path / "words")
    assert str(caught.value) == (
        f"'{tmp_path / 'words'}' gives 9 numbers, a reward model gives 2. Train one with: posttrain train prm-step"
    )
