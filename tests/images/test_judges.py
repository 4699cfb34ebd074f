"""Judges of answers to pictures: a chat model that sees them, a reward model, a function, a server; others refuse."""

import posttrain
import pytest
import torch
from posttrain.errors import RewardError
from posttrain.models.load import load_tokenizer
from posttrain.network.image_reader import reader_of
from posttrain.rewards.judge import load_judge
from posttrain.rewards.judge_model import ModelJudge
from posttrain.rewards.judge_prompt import fill, fill_parts
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from posttrain_testkit.tiny_vision import answered, picture, shown, tiny_vision

ASKED = [[shown("see ", 1, " and ", 2)], [shown("see ", 1, " and ", 3)], [{"role": "user", "content": "hello"}]]
PICTURES = [[picture(1), picture(2)], [picture(1), picture(3)], []]
TEMPLATE = "task {prompt} one {first} two {second} which"


def saved(folder, family):
    """A chat model whose tokenizer knows the labels."""
    model, processor = tiny_vision(family, initializer_range=0.2)
    processor.tokenizer.add_tokens(["A", "B"])
    torch.manual_seed(0)
    model.resize_token_embeddings(len(processor.tokenizer))
    with torch.no_grad():
        model.get_output_embeddings().weight[-2:] *= 100  # the labels' logits differ by more than rounding
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "template").write_text(TEMPLATE)
    return folder


def plain_probability(folder, content, pictures):
    """The probability of A against B by transformers' own processor and forward pass."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    processor = reader_of(load_tokenizer(str(folder), Settings(model=str(folder)).model)).processor
    text = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(
        text=[text], images=[pictures] if pictures else None, return_tensors="pt", add_special_tokens=False
    )
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    labels = processor.tokenizer.convert_tokens_to_ids(["A", "B"])
    return torch.softmax(logits[labels], 0)[0].item()


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
def test_a_model_is_shown_the_pictures_where_the_prompt_has_them(tmp_path, family):
    folder = saved(tmp_path, family)
    given = {"both_orders": "false", "template": str(folder / "template"), "device": "cpu"}
    judge = load_judge(str(folder), given)
    found = judge(ASKED, ["ab", "ab", "ab"], ["c", "c", "c"], PICTURES)
    image = {"type": "image"}

    def text(words):
        return {"type": "text", "text": words}

    seen = [text("task see "), image, text(" and "), image, text(" one ab two c which")]
    contents = [seen, seen, "task hello one ab two c which"]
    wanted = [plain_probability(folder, *pair) for pair in zip(contents, PICTURES, strict=True)]
    assert found == pytest.approx(wanted, abs=1e-5)
    assert abs(found[0] - found[1]) > 2e-5  # the same words behind another picture


def test_pictures_without_a_part_come_first():
    text = {"type": "text", "text": "task what one a two b which"}
    assert fill_parts(TEMPLATE, "what", "a", "b", 2) == [{"type": "image"}, {"type": "image"}, text]
    assert fill_parts(TEMPLATE, "what", "a", "b", 0) == [text]
    assert fill(TEMPLATE, ASKED[0], "a", "b") == "task see  and  one a two b which"


def test_a_reward_model_is_shown_the_pictures(vision, tmp_path):
    from posttrain.rewards.model import reward_model

    rows = [{"prompt": one, "chosen": [answered("ab")], "rejected": [answered("cde")]} for one in ASKED]
    options = {"batch_size": 3, "steps": 1, "learning_rate": 1e-2, "progress": "quiet", "report": False}
    posttrain.train("reward", model=vision("llava"), data=rows, output=str(tmp_path), device="cpu", **options)
    judge = load_judge(str(tmp_path / "model"), {"device": "cpu"})
    found = judge(ASKED, ["ab"] * 3, ["cde"] * 3, PICTURES)
    score = reward_model(tmp_path / "model", device="cpu")
    first, second = (torch.tensor(score(ASKED, [said] * 3, PICTURES)) for said in ("ab", "cde"))
    assert found == pytest.approx(torch.sigmoid(first - second).tolist(), abs=1e-5)


def test_a_function_gets_the_pictures_by_name_and_judges_a_run(vision, tmp_path):
    seen = []

    def prefers(prompts, firsts, seconds, images):
        seen.extend([one.size for one in own] for own in images)
        return [float(len(first) > len(second)) for first, second in zip(firsts, seconds, strict=True)]

    options = {"batch_size": 3, "steps": 1, "group_size": 2, "max_new_tokens": 4, "progress": "quiet", "report": False}
    rows = [{"prompt": one} for one in ASKED]
    run = posttrain.train(
        "online-dpo", model=vision("llava"), data=rows, judge=prefers, output=str(tmp_path), device="cpu", **options
    )
    assert run.metrics[-1]["loss"] == run.metrics[-1]["loss"]
    assert [(24, 20)] * 2 in seen
    assert load_judge(prefers)(["q"], ["aa"], ["b"]) == [1.0]  # prompts of text have none


def test_judges_of_text_refuse_pictures(tmp_path):
    def plain(prompts, firsts, seconds):
        return [0.5 for _ in prompts]

    words = (
        "Judge 'plain' is not shown images, and the prompts have some. Use a vision-language model, or a function "
        "(prompts, firsts, seconds, images)."
    )
    with pytest.raises(RewardError) as raised:
        load_judge(plain)(ASKED, ["a"] * 3, ["b"] * 3, PICTURES)
    assert str(raised.value) == words
    assert load_judge(plain)(ASKED[2:], ["a"], ["b"], PICTURES[2:]) == [0.5]
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    judge = load_judge(str(tmp_path), {"device": "cpu"})
    assert isinstance(judge.ask, ModelJudge)
    with pytest.raises(RewardError, match="is not shown images, and the prompts have some"):
        judge(ASKED, ["a"] * 3, ["b"] * 3, PICTURES)
