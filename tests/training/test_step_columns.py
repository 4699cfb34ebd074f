"""What a method works out from a whole step of rollouts: columns for the loss, and steps filled with whole prompts."""

from types import ModuleType

import pytest
import torch
from posttrain import Selection, api, hookimpl
from posttrain.catalogue.cards import Card, read_card
from posttrain.catalogue.methods import from_module
from posttrain.contract.generation import Completion
from posttrain.contract.rollout import Rollout
from posttrain.errors import CardError, PluginError, SettingsError
from posttrain.rollouts.requests import fold_auxiliary_rollouts
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer


def method(**hooks):
    module = ModuleType("posttrain_method_probe")
    module.__file__ = __file__
    for name, function in hooks.items():
        setattr(module, f"posttrain_{name}", hookimpl(function))
    card = Card("probe", "0.1.0", "experimental", "A probe.", ("prompt",), ("generation", "rewards"))
    return from_module(module, card)


def train(probe, folder, reward, **options):
    keywords = {"batch_size": 4, "group_size": 3, "steps": 1, "max_new_tokens": 4, "learning_rate": 0.0}
    return api.train(
        probe,
        Settings(output=str(folder), progress="quiet", cache="off", device="cpu", **(keywords | options)),
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
        data=[{"prompt": letter} for letter in "abcdefgh"],
        reward=reward,
    )


def advantages_with(columns):
    def advantages(rewards, rollouts):
        return columns(rewards, rollouts)

    return advantages


def test_other_columns_reach_the_loss(tmp_path):
    """One value a completion and one a token, beside advantages of either shape; micro-batches keep them apart."""
    seen = []

    def columns(rewards, rollouts):
        places = torch.arange(len(rewards), dtype=torch.float32)
        return {"advantages": places, "twice": 2 * places, "spread": places[:, None].expand(rollouts.mask.shape)}

    def loss(batch, policy):
        view = policy.completion
        seen.extend(
            zip(batch.advantages.tolist(), batch.twice.tolist(), view.mean_of(batch.spread).tolist(), strict=True)
        )
        return view.mean

    probe = method(advantages=advantages_with(columns), loss=loss)
    train(probe, tmp_path / "run", lambda prompts, completions: [0.0] * len(prompts), micro_batch_size=5)
    assert sorted(seen) == [(place, 2 * place, place) for place in range(12)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (lambda rewards, rollouts: rewards[:5], r"returned (5,) for 'advantages'"),
        (lambda rewards, rollouts: {"returns": rewards}, "returned NoneType for 'advantages'"),
        (lambda rewards, rollouts: {"advantages": rewards, "returns": rewards[:, None, None]}, "for 'returns'"),
        (lambda rewards, rollouts: {"advantages": rewards, "weight": 0.5}, "returned float for 'weight'"),
    ],
)
def test_columns_of_another_shape_are_refused(tmp_path, columns, message):
    probe = method(advantages=advantages_with(columns), loss=lambda policy: policy.completion.mean)
    with pytest.raises(PluginError) as caught:
        train(probe, tmp_path / "run", lambda prompts, completions: [0.0] * len(prompts))
    assert message in str(caught.value)
    assert "Expected one value a rollout (12,) or one a token (12, 4)." in str(caught.value)


def test_a_refilled_step_has_whole_groups(tmp_path):
    """G6, G9: with one completion of each prompt unscored a step still has its four prompts, each with the other two.

    Every second prompt is refused, so that two batches are needed for a step.
    """
    groups = []

    def select(rollouts):
        return Selection([item for item in rollouts.items if item.columns["prompt"] in "aceg"], refill=True)

    def advantages(rewards, rollouts):
        groups.append(rollouts.group.tolist())
        return rewards

    def scored(prompts, completions):
        return [None if place % 3 == 0 else 1.0 for place in range(len(prompts))]

    probe = method(select=select, advantages=advantages, loss=lambda policy: policy.completion.mean)
    run = train(probe, tmp_path / "run", scored, steps=2)
    assert groups == [[0, 0, 1, 1, 2, 2, 3, 3]] * 2
    assert [line["generation_rounds"] for line in run.metrics] == [2, 2]


def card(tmp_path, line):
    path = tmp_path / "method.toml"
    path.write_text(
        'name = "probe"\nversion = "0.1.0"\ntier = "experimental"\nsummary = "A probe."\nschema = "prompt"\n'
        f'requires = ["posttrain>=0.1"]\n{line}\n'
    )
    return read_card(path)


def test_an_option_follows_one_of_the_run(tmp_path):
    """Where it is left out: the run's, or without a run the usual one. A name that is no option is refused."""
    grpo = from_module(
        __import__("posttrain_method_grpo"), card(tmp_path, 'follows = { constant_length = "max_new_tokens" }')
    )
    assert grpo.config({}, Settings(max_new_tokens=9)).constant_length == 9
    assert grpo.config({"constant_length": 4}, Settings(max_new_tokens=9)).constant_length == 4
    assert grpo.config({}).constant_length == 256
    wrong = from_module(__import__("posttrain_method_grpo"), card(tmp_path, 'follows = { length = "max_new_tokens" }'))
    with pytest.raises(SettingsError, match="unexpected keyword argument 'length'"):
        wrong.config({})
    with pytest.raises(CardError, match="'follows' is 3, expected a dict"):
        card(tmp_path, "follows = 3")


def test_answers_meet_their_prompts_opponents_in_turn():
    """Three answers of one prompt and two opponents: the third meets the first again; another prompt is left alone."""

    def made(group, reward, opponent_column=""):
        completion = Completion(torch.tensor([3]), torch.tensor([-1.0]), True, "a")
        return Rollout(group, torch.tensor([4]), completion, {}, reward, opponent_column=opponent_column)

    items = [made(0, 1.0), made(0, 2.0), made(0, 3.0), made(0, 10.0, "chance"), made(0, 20.0, "chance"), made(1, 5.0)]
    asked = []

    def prefer(first, second):
        asked.extend(zip(first, second, strict=True))
        return torch.tensor([items[i].reward - items[j].reward for i, j in asked])

    left = fold_auxiliary_rollouts(items, prefer)
    assert asked == [(0, 3), (1, 4), (2, 3)]
    assert [item.columns.get("chance") for item in left] == [-9, -18, -7, None]
