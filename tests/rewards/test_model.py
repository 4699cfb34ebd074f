import json

import pytest
import torch
from posttrain.errors import ModelError, RewardError
from posttrain.rewards.model import encode, reward_model, score_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"


def byte_tokenizer(template):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Ids run backwards: the ids of any other tokenizer mean other letters here.
    core = Tokenizer(models.BPE(vocab={letter: 255 - i for i, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


def tiny_config(**changes):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(vocab_size=257, eos_token_id=256, pad_token_id=256, bos_token_id=None, **sizes, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "judge"
    torch.manual_seed(3)
    LlamaForSequenceClassification(tiny_config(num_labels=1, initializer_range=0.5)).save_pretrained(path)
    byte_tokenizer(TEMPLATE).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return LlamaForSequenceClassification.from_pretrained(folder).eval()


def expected(model, ids):
    """Score of one row alone, without padding: the head on the very last hidden state."""
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        return (model.score.weight @ hidden).item()


def test_scores_are_those_of_each_text_alone(folder, model):
    """G13, M2: read at the end token although its id is the padding id too, in batches of unequal lengths."""
    score = reward_model(folder, batch_size=3, device="cpu")
    prompts, completions = ["Hi ", "A much longer prompt ", "x", "Why? "], ["yes", "no", "", "because it is so"]
    tokenizer = byte_tokenizer(TEMPLATE)
    rows = [
        tokenizer(prompt + completion)["input_ids"] + [256]
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    assert score(prompts, completions) == pytest.approx([expected(model, ids) for ids in rows], abs=1e-5)
    assert score.__name__ == "judge"


@pytest.mark.parametrize("padding", [0, 1, 9])
def test_padding_changes_nothing(model, padding):
    rows = [[5, 6, 7, 256], [9, 256], [1, 2, 256, 3, 256]]
    scores = score_rows(model, rows, batch_size=4, extra_padding=padding)
    assert scores == pytest.approx([expected(model, ids) for ids in rows], abs=1e-5)


def test_text_is_encoded_by_the_models_own_tokenizer(folder):
    """T16: the ids of this tokenizer run backwards, so the policy's ids would be other letters."""
    tokenizer = byte_tokenizer(TEMPLATE)
    plain = encode(tokenizer, "Hi ", "yes")
    assert tokenizer.decode(plain) == "Hi yes<eos>"
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.decode(encode(tokenizer, messages, "yes")) == "[user]Hi<eos>[assistant]yes<eos>"
    with pytest.raises(RewardError, match="no chat template"):
        encode(byte_tokenizer(None), messages, "yes")


def test_folders_that_hold_no_reward_model(tmp_path, folder):
    def text(path):
        with pytest.raises(ModelError) as caught:
            reward_model(path)
        return str(caught.value)

    assert text(tmp_path).startswith(f"reward model '{tmp_path}': Model folder '{tmp_path}' has no config.json.")
    LlamaForCausalLM(tiny_config()).save_pretrained(tmp_path / "policy")
    assert text(tmp_path / "policy") == (
        f"'{tmp_path / 'policy'}' holds LlamaForCausalLM, which has no reward head. "
        "Train one with: posttrain train reward"
    )
    LlamaForSequenceClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path / "three")
    byte_tokenizer(None).save_pretrained(tmp_path / "three")
    assert "gives 3 numbers, a reward model gives 1" in text(tmp_path / "three")
    (tmp_path / "config.json").write_text("{")
    assert "config.json' is not valid JSON" in text(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForSequenceClassification"]}))
    assert text(tmp_path).startswith(f"'{tmp_path / 'config.json'}' holds what cannot be used: Unrecognized model")
