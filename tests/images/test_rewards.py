"""A reward model that sees images as a reward, and evaluations of rows with images."""

import json

import posttrain
import pytest
import torch
from posttrain import api
from posttrain.errors import RewardError
from posttrain.models.processor import head_class
from posttrain.rewards import load_rewards, score
from posttrain.rewards.model import reward_model
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from posttrain_testkit.tiny_vision import answered, picture, shown
from transformers import AutoConfig, AutoProcessor

COMMON = {"batch_size": 4, "steps": 1, "learning_rate": 1e-2, "progress": "quiet", "report": False, "device": "cpu"}
ASKED = [shown(1, "what"), shown(2, "what"), shown(3, "one ", 4, "two"), {"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def judge(vision, tmp_path_factory):
    """The folder of a reward model trained on images."""
    folder = tmp_path_factory.mktemp("judge")
    rows = [{"prompt": [one], "chosen": [answered("ab")], "rejected": [answered("cde")]} for one in ASKED]
    posttrain.train("reward", model=vision("llava"), data=rows, output=str(folder), train_vision="all", **COMMON)
    return folder / "model"


def plain_score(folder, message, answer):
    """The score by transformers' own processor and forward pass, one row alone."""
    config = AutoConfig.from_pretrained(folder)
    model = head_class(config, "score").from_pretrained(folder, attn_implementation="eager").eval()
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.tokenizer.apply_chat_template([message, answered(answer)], tokenize=False).rstrip("\n")
    parts = message["content"] if isinstance(message["content"], list) else []
    pictures = [part["image"] for part in parts if part["type"] == "image"]
    inputs = processor(text=[text], images=[pictures] if pictures else None, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits[0, 0].item()


def test_scores_are_those_of_the_plain_model(judge):
    answers = ["ab", "cde", "f", "ab"]
    images = [[picture(1)], [picture(2)], [picture(3), picture(4)], []]
    found = reward_model(judge, batch_size=3)([[one] for one in ASKED], answers, images)
    wanted = [plain_score(judge, *row) for row in zip(ASKED, answers, strict=True)]
    assert found == pytest.approx(wanted, abs=1e-5)
    assert len({round(one, 6) for one in found[:2]}) == 2  # the same words behind other pictures


def test_it_rewards_a_run(judge, vision, tmp_path):
    rows = [{"prompt": [one]} for one in ASKED]
    options = COMMON | {"group_size": 2, "max_new_tokens": 4}
    run = posttrain.train("rloo", model=vision("llava"), data=rows, output=str(tmp_path), reward=str(judge), **options)
    line = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    assert run.progress.history[0]["reward"] != 0.0
    assert line["reward"] != 0.0


def test_a_model_of_text_is_not_asked_about_images(tmp_path):
    tiny_model("reward-head").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RewardError) as raised:
        reward_model(tmp_path)(["a"], ["b"], [[picture(1)]])
    assert str(raised.value) == (
        f"reward model '{tmp_path}' is asked without images, and the prompts have some. Use a vision-language reward "
        "model (posttrain train reward), or a reward function, whose argument images has them."
    )


def test_answers_to_images_are_evaluated(vision):
    seen = []

    def sees(completions, images, **_):
        seen.extend(len(own) for own in images)
        return [float(len(text) > 2) for text in completions]

    rows = [{"prompt": [{"role": "user", "content": "what"}], "images": [picture(seed)]} for seed in (1, 2)]
    rows.append({"prompt": [{"role": "user", "content": "what"}]})
    asked = {"data": rows, "reward": [sees], "max_new_tokens": 4, "device": "cpu"}
    found = api.evaluate(vision("llava"), **asked).sets[""]
    assert seen == [1, 1, 0]
    alone = [
        api.generate_text(vision("llava"), [row["prompt"]], images=row.get("images"), max_new_tokens=4) for row in rows
    ]
    assert [[line["completion"]] for line in found.lines] == alone
    json.dumps(found.lines)  # what is written holds no picture


def test_a_reward_in_its_own_process_gets_the_pictures(tmp_path):
    (tmp_path / "red.py").write_text(
        "def red(completions, images):\n"
        "    return [float(sum(one.getpixel((0, 0))[0] for one in own)) for own in images]\n"
    )
    rewards = load_rewards([f"{tmp_path / 'red.py'}:red"], apart=True)
    images = [[picture(1)], [], [picture(2), picture(3)]]
    total, _ = score(rewards, ["q"] * 3, ["a"] * 3, {"images": images})
    assert total.tolist() == [float(sum(one.getpixel((0, 0))[0] for one in own)) for own in images]
