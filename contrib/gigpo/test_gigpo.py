import pytest
import torch
from posttrain.contract.generation import Completion, Episode
from posttrain.contract.rollout import Rollout, Rollouts


def rollout(group, turns, rewards, said=None):
    """An episode with so many tokens in each turn; ``said`` is what the environment answered in between."""
    turn = torch.tensor([number for number, count in enumerate(turns) for _ in range(count)])
    talk = []
    for number in range(len(turns)):
        talk.append({"role": "assistant", "content": "x"})
        if said is not None and number < len(said):
            talk.append({"role": "user", "content": said[number]})
    episode = Episode(torch.tensor([1]), torch.ones(len(turn)).bool(), turn, list(rewards), talk, "done")
    made = Completion(turn + 4, torch.zeros(len(turn)), True, "", episode=episode)
    return Rollout(group, torch.tensor([1]), made, {} if said is None else {"messages": talk}, sum(rewards))


def worked_out(method, items, **options):
    found = Rollouts(items, lambda *_: [])
    rewards = torch.tensor([item.reward for item in items], dtype=torch.float64)
    advantages, columns = method.advantages_and_columns(
        rewards=rewards, rollouts=found, config=method.config(options), state={}
    )
    return [row[mask].tolist() for row, mask in zip(advantages, found.mask, strict=True)], columns


def test_turns_are_compared_where_the_environment_said_the_same(method):
    """Two episodes met "left", one "right": what was earned from there on is 1 and 0, so 1/2 and -1/2; alone: 0."""
    items = [
        rollout(0, [1, 2], [0.0, 1.0], ["left"]),
        rollout(0, [1, 1], [0.0, 0.0], ["left"]),
        rollout(0, [2, 1], [0.0, 0.5], ["right"]),
    ]
    found, columns = worked_out(method, items, gamma=1.0, omega=10.0)
    whole = [0.5, -0.5, 0.0]  # 1, 0 and 1/2 less their mean, and the same for the first turns: all began alike
    assert found[0] == pytest.approx([whole[0] + 5, whole[0] + 5, whole[0] + 5])
    assert found[1] == pytest.approx([whole[1] - 5, whole[1] - 5])
    assert found[2] == pytest.approx([0.0, 0.0, 0.0])
    assert columns["shared_states"].tolist() == [1, 1, 1]


def test_states_of_another_prompt_are_others(method):
    items = [rollout(0, [1, 1], [0.0, 1.0], ["left"]), rollout(1, [1, 1], [0.0, 0.0], ["left"])]
    found, columns = worked_out(method, items)
    assert found == [[0, 0], [0, 0]]
    assert columns["shared_states"].tolist() == [0, 0]


def test_loss_is_clipped_and_averaged_over_tokens(completion_loss):
    from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH

    assert completion_loss(NEW, WORTH, MASK, OLD, shared_states=WORTH)[0].tolist() == pytest.approx([-2, -2.4, 0.8])
