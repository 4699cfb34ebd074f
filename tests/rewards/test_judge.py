"""Judges in memory: functions, chat models, reward models. Those behind a server: tests/servers/test_server_judge.py"""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from posttrain.errors import ModelError, RewardError, RunFailed, SettingsError
from posttrain.rewards.judge import Judge, load_judge
from posttrain.rewards.judge_model import ModelJudge
from posttrain.rewards.judge_prompt import fill
from posttrain_testkit.tiny import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}[assistant]"


def byte_tokenizer(template, merges=()):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


def tiny_config(**changes):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": 256, "pad_token_id": 256, "bos_token_id": None}
    return LlamaConfig(vocab_size=260, initializer_range=0.5, max_position_embeddings=1000, **ends, **sizes, **changes)


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "chat"
    torch.manual_seed(5)
    LlamaForCausalLM(tiny_config()).save_pretrained(path)
    byte_tokenizer(TEMPLATE).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "scorer"
    torch.manual_seed(3)
    LlamaForSequenceClassification(tiny_config(num_labels=1)).save_pretrained(path)
    byte_tokenizer(TEMPLATE).save_pretrained(path)
    return path


def text_of(kind, call):
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def always_first(prompts, firsts, seconds):
    return [1.0] * len(prompts)


def test_a_place_that_is_always_preferred_cancels():
    assert load_judge(always_first)(["q"] * 2, ["a", "b"], ["b", "a"]) == [0.5, 0.5]
    assert load_judge(always_first, {"both_orders": "false"})(["q"], ["a"], ["b"]) == [1.0]


def test_exchanging_the_answers_gives_the_rest_to_one():
    """0.9 for the first place and 0.3 in the other order: (0.9 + 1 - 0.3) / 2 = 0.8."""
    judge = Judge("j", lambda p, firsts, s: [0.9 if first == "a" else 0.3 for first in firsts])
    assert judge(["q"], ["a"], ["b"]) == pytest.approx([0.8])
    assert judge(["q"], ["b"], ["a"]) == pytest.approx([0.2])


def test_equal_answers_are_not_asked_about():
    asked = []

    def judge(prompts, firsts, seconds):
        asked.extend(zip(prompts, firsts, seconds, strict=True))
        return [None] * len(prompts)

    assert load_judge(judge)(["q", "r", "s"], ["a", "b", ""], ["a", "c", ""]) == [0.5, None, 0.5]
    assert asked == [("r", "b", "c"), ("r", "c", "b")]
    asked.clear()
    assert load_judge(judge)(["q"], ["a"], ["a"]) == [0.5]
    assert load_judge(judge)([], [], []) == []
    assert asked == []


def test_functions_in_files_with_options(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "async def longer(prompts, firsts, seconds, tokenizer, sure: float = 1.0):\n"
        "    return [sure if len(tokenizer(a)) > len(tokenizer(b)) else None for a, b in zip(firsts, seconds)]\n"
    )
    judge = load_judge(f"{file}:longer", {"sure": "0.75", "both_orders": "false"}, str.split)
    assert judge(["q", "q"], ["a b", "a"], ["abc", "a b"]) == [0.75, None]
    assert text_of(SettingsError, lambda: load_judge(f"{file}:longer", {"shure": "1"})) == (
        "Judge 'longer' has no option 'shure'. Did you mean 'sure'? It has: tokenizer, sure."
    )
    assert text_of(SettingsError, lambda: load_judge(f"{file}:longer", {"sure": "very"})) == (
        "judge option 'longer.sure' is 'very', expected float."
    )
    assert text_of(RewardError, lambda: load_judge(f"{file}:shorter")) == (
        f"judge file '{file}' has no function 'shorter'. It has: longer."
    )
    assert text_of(RewardError, lambda: load_judge("absent.py:f")) == (
        "judge 'absent.py:f': there is no file 'absent.py'. Give its path from the current folder."
    )


def test_installed_judges(install, tmp_path, monkeypatch):
    (tmp_path / "judge_of_mine.py").write_text(
        "def better(prompts, firsts, seconds):\n    return [float(a > b) for a, b in zip(firsts, seconds)]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    install(alphabet=("mine", "judge_of_mine:better"), length=("posttrain", "posttrain.rewards.text:length"))
    assert load_judge("alphabet")(["q"], ["b"], ["a"]) == [1.0]
    assert text_of(RewardError, lambda: load_judge("length")) == (
        "'length' is a reward: it scores one answer at a time. Give it with --reward; a judge takes "
        "(prompts, firsts, seconds)."
    )
    assert text_of(RewardError, lambda: load_judge("alphabot")) == (
        "No judge is called 'alphabot'. Did you mean 'alphabet'? Expected http://HOST:PORT/v1#MODEL, the folder or "
        "Hub id of a chat model, the folder of a reward model, file.py:function."
    )


def test_functions_that_are_no_judges():
    assert text_of(RewardError, lambda: load_judge(lambda prompts, firsts: [])) == (
        "Judge '<lambda>' does not take seconds. Expected a function (prompts, firsts, seconds)."
    )

    def returning(value):
        def judge(prompts, firsts, seconds):
            return value

        return lambda: load_judge(judge, {"both_orders": "false"})(["q"], ["a"], ["b"])

    expected = "expected the probability from 0 to 1 that the first answer is better, or None."
    assert text_of(RewardError, returning([1.5])) == f"Judge 'judge' returned 1.5, {expected}"
    assert text_of(RewardError, returning([math.nan])) == f"Judge 'judge' returned nan, {expected}"
    assert text_of(RewardError, returning(["A"])) == f"Judge 'judge' returned 'A', {expected}"
    each = "for 1 pairs, expected a probability or None each."
    assert text_of(RewardError, returning([0.1, 0.2])) == f"Judge 'judge' returned 2 values {each}"
    assert text_of(RewardError, returning(None)) == f"Judge 'judge' returned None {each}"
    assert returning(torch.tensor([0.25]))() == [0.25]


def test_an_exception_says_where():
    def judge(prompts, firsts, seconds):
        raise KeyError("gone")

    async def later(prompts, firsts, seconds):
        raise KeyError("gone")

    for function in (judge, later):
        text = text_of(RunFailed, lambda function=function: load_judge(function)(["q"], ["a"], ["b"]))
        assert text.startswith(f"Judge '{function.__name__}' raised KeyError at {__file__}:")
        assert "on pair 0 ('a', prompt 'q') of a batch of 2 pairs: 'gone'. A judge returns None for a pair" in text


def label_probability(folder, question):
    """P(A) / (P(A) + P(B)) as what the model says first, one pair alone, by transformers' own logits."""
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    text = f"[user]{question}<eos>[assistant]"
    tokenizer = byte_tokenizer(None)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
    a, b = logits[tokenizer("A")["input_ids"][0]].exp(), logits[tokenizer("B")["input_ids"][0]].exp()
    return (a / (a + b)).item()


def test_a_chat_model_compares_its_two_labels(chat_folder, tmp_path):
    """In batches of unequal lengths, with the end token as padding (M1, M2)."""
    file = tmp_path / "template"
    file.write_text("{prompt}: A {first} or B {second}?")
    judge = load_judge(str(chat_folder), {"both_orders": "false", "batch_size": "2", "template": str(file)})
    messages = [{"role": "user", "content": "Why?"}]
    prompts, firsts, seconds = ["q", messages, "x" * 60], ["yes", "no", ""], ["no", "because it is so", "a"]
    questions = ["q: A yes or B no?", "Why?: A no or B because it is so?", "x" * 60 + ": A  or B a?"]
    expected = [label_probability(chat_folder, question) for question in questions]
    assert judge(prompts, firsts, seconds) == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) == 3
    both = load_judge(str(chat_folder), {"template": str(file)})(["q"], ["yes"], ["no"])
    assert both == pytest.approx(
        [(expected[0] + 1 - label_probability(chat_folder, "q: A no or B yes?")) / 2], abs=1e-5
    )


def test_the_built_in_question_and_pairs_too_long_for_the_model(chat_folder):
    judge = load_judge(str(chat_folder), {"both_orders": "false"})
    template = judge.ask.template
    expected = label_probability(chat_folder, fill(template, "q", "yes", "no"))
    assert judge(["q", "q"], ["yes", "y" * 900], ["no", "n"]) == [pytest.approx(expected, abs=1e-5), None]
    assert template.count("{prompt}") == template.count("{first}") == template.count("{second}") == 1


def test_an_adapter_judges_with_its_base(chat_folder, tmp_path):
    torch.manual_seed(8)
    base = LlamaForCausalLM.from_pretrained(chat_folder)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, config)
    adapted.peft_config["default"].base_model_name_or_path = str(chat_folder)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    file = tmp_path / "template"
    file.write_text("{prompt}{first}{second}")
    judge = load_judge(str(tmp_path / "adapter"), {"both_orders": "false", "template": str(file)})
    (found,) = judge(["q"], ["yes"], ["no"])
    assert found == pytest.approx(label_probability(tmp_path / "merged", "qyesno"), abs=1e-5)
    assert abs(found - label_probability(chat_folder, "qyesno")) > 1e-3


def test_labels_that_merge_with_what_stands_before(chat_folder):
    """T7: a tokenizer that has ']A' but not ']B'; the labels are compared where the two texts part."""
    judge = ModelJudge(str(chat_folder))
    judge.tokenizer = byte_tokenizer(TEMPLATE, merges=[("]", "A")])
    ids, (a, b) = judge._tokens("q")
    decode = judge.tokenizer.decode
    assert decode(ids) == "[user]q<eos>[assistant"
    assert (decode([a]), decode([b])) == ("]A", "]")


def test_chat_models_that_cannot_judge(chat_folder, tmp_path):
    LlamaForCausalLM(tiny_config()).save_pretrained(tmp_path / "base")
    byte_tokenizer(None).save_pretrained(tmp_path / "base")
    assert text_of(ModelError, lambda: load_judge(str(tmp_path / "base"))) == (
        f"The judge '{tmp_path / 'base'}' has no chat template. Expected a model that was trained to chat."
    )
    judge = ModelJudge(str(chat_folder))
    judge.tokenizer = tiny_tokenizer()  # it knows the letters a to h alone
    assert text_of(ModelError, lambda: judge(["q"], ["a"], ["b"])) == (
        f"The tokenizer of the judge '{chat_folder}' cannot tell 'A' from 'B'. Use another model."
    )
    assert text_of(SettingsError, lambda: load_judge(str(chat_folder), {"device": "toaster"})) == (
        "judge-options device is 'toaster', which this machine does not have."
    )
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text("{")
    assert text_of(ModelError, lambda: load_judge(str(tmp_path / "odd"))).startswith(
        f"judge '{tmp_path / 'odd'}': '{tmp_path / 'odd' / 'config.json'}' is not valid JSON ("
    )


def test_a_reward_model_gives_the_sigmoid_of_the_difference(reward_folder):
    judge = load_judge(str(reward_folder), {"batch_size": "2"})
    model = LlamaForSequenceClassification.from_pretrained(reward_folder).eval()

    def score(text):
        with torch.no_grad():
            hidden = model.model(torch.tensor([byte_tokenizer(None)(text)["input_ids"]])).last_hidden_state[0, -1]
        return (model.score.weight @ hidden).item()

    found = judge(["Hi ", "Why? "], ["yes", "so"], ["no", "because"])
    differences = [score("Hi yes<eos>") - score("Hi no<eos>"), score("Why? so<eos>") - score("Why? because<eos>")]
    assert found == pytest.approx([1 / (1 + math.exp(-d)) for d in differences], abs=1e-5)
    exchanged = judge(["Hi ", "Why? "], ["no", "because"], ["yes", "so"])
    assert [a + b for a, b in zip(found, exchanged, strict=True)] == pytest.approx([1, 1])
    assert judge.name == "scorer"
    assert text_of(SettingsError, lambda: load_judge(str(reward_folder), {"both_orders": "true"})) == (
        "This judge has no option 'both_orders'. It has: batch_size, device."
    )


def test_an_installed_judge_is_a_plugin_that_may_be_forbidden(install, monkeypatch):
    install(alphabet=("mine", "judge_of_mine:better"), length=("posttrain", "posttrain.rewards.text:length"))
    monkeypatch.setenv("POSTTRAIN_ALLOW_PLUGINS", "m")
    assert text_of(SettingsError, lambda: load_judge("alphabet")) == (
        "Reward 'alphabet' of mine is not among the allowed plugins (m). Add it with: --allow-plugins alphabet,m"
    )
