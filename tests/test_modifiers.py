"""Modifiers: each composition equals the formula written out by hand, and what does not fit is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain import api
from posttrain.catalogue import methods
from posttrain.catalogue.cards import read_card
from posttrain.catalogue.defaults import split_modifier
from posttrain.catalogue.modifiers import Modified, apply_modifiers
from posttrain.contract.views import Batch, PerToken, Step, View, Views
from posttrain.errors import CardError, MethodError, PluginError, SettingsError
from posttrain.settings import Settings
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent
CARD = """\
name = "fake-one"
version = "0.1.0"
tier = "experimental"
summary = "A modifier."
schema = "prompt"
modifier = true
requires = []
"""
D = torch.float64
RANDOM = torch.Generator().manual_seed(3)
MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
NEW, OLD, SAMPLED, REFERENCE = (
    -torch.rand(3, 3, generator=RANDOM, dtype=D).mul(2).masked_fill(~MASK, 0.0) for _ in range(4)
)
WORTH = torch.tensor([1.5, -0.7, 0.4], dtype=D)
LEFT_OUT = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=D)


def folder(name: str) -> str:
    (found,) = [path for tier in ("plugins", "contrib") if (path := ROOT / tier / name).is_dir()]
    return str(found)


def compose(name: str, *modifiers: str) -> methods.Method:
    named = [text.replace(one, folder(one), 1) for text in modifiers for one in [split_modifier(text)[0]]]
    return apply_modifiers(methods.load(folder(name)), Settings(modifier=named))


def loss_of(method: methods.Method, **options):
    """Mean loss and its gradient by the log-probs, under random old, sampled and reference log-probs."""
    new = NEW.clone().requires_grad_()
    columns = {"advantages": WORTH, "old_logps": OLD, "sampled_logps": SAMPLED, "overlong_punishment": WORTH * 0}
    columns |= {"left_out": LEFT_OUT, "covariance": LEFT_OUT}
    returned = method.loss(
        batch=Batch(3, columns),
        policy=Views(completion=View(new, MASK)),
        reference=Views(completion=View(REFERENCE, MASK)),
        config=method.config(options),
        step=Step(0, 1),
    )
    loss, metrics = returned
    total = loss.values[loss.mask].mean() if isinstance(loss, PerToken) else loss.mean()
    total.backward()
    return total.item(), new.grad, metrics


def by_hand(one_token, reduce):
    """The same from Python numbers: ``one_token(log_p, ratio, w A, kl)``, summed over what ``reduce`` is given."""
    new = NEW.clone().requires_grad_()
    rows = []
    for i in range(3):
        row = []
        for t in range(int(MASK[i].sum())):
            weight = min(float((OLD[i, t] - SAMPLED[i, t]).exp()), 1.3) * (1 - float(LEFT_OUT[i, t]))
            away = REFERENCE[i, t] - new[i, t]
            kl = away.exp() - away - 1
            row.append(one_token(new[i, t], (new[i, t] - OLD[i, t]).exp(), weight * float(WORTH[i]), kl))
        rows.append(row)
    total = reduce(rows)
    total.backward()
    return total.item(), new.grad


def clipped(low, high):
    return lambda _, ratio, worth, kl: -torch.minimum(ratio * worth, ratio.clamp(1 - low, 1 + high) * worth)


def over_tokens(rows):
    return torch.stack([value for row in rows for value in row]).mean()


@pytest.mark.parametrize(
    ("name", "options", "one_token", "reduce"),
    [
        (
            "rloo",
            {"importance_level": "token", "beta": 0.0},
            clipped(0.2, 0.2),
            lambda rows: torch.stack([sum(row) for row in rows]).mean(),
        ),
        ("dapo", {}, clipped(0.2, 0.28), over_tokens),
        ("cispo", {}, lambda log_p, ratio, worth, kl: -ratio.detach().clamp(0.0, 5.0) * worth * log_p, over_tokens),
        (
            "grpo",
            {"beta": 0.3},
            lambda log_p, ratio, worth, kl: clipped(0.2, 0.2)(log_p, ratio, worth, kl) + 0.3 * kl,
            lambda rows: torch.stack([sum(row) / len(row) for row in rows]).mean(),
        ),
    ],
)
def test_two_modifiers_of_four_methods_equal_the_formula_by_hand(name, options, one_token, reduce):
    """Weights min(p_old / p_sampled, 1.3) and 0 for a token that is left out; the divergence is not weighted."""
    found, gradient, metrics = loss_of(compose(name, "tis:cap=1.3", "clip-cov"), **options)
    expected, wanted = by_hand(one_token, reduce)
    assert found == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-9)
    assert {"sampler_weight", "truncated", "left_out", "covariance"} <= set(metrics)
    alone, _, _ = loss_of(methods.load(folder(name)), **options)
    assert abs(found - alone) > 1e-3  # the weights matter


def test_the_modifier_by_itself_is_grpo_with_it():
    options = {"beta": 0.2, "epsilon": 0.1}
    found, gradient, _ = loss_of(methods.load(folder("tis")), cap=1.3, **options)
    expected, wanted, _ = loss_of(compose("grpo", "tis:cap=1.3"), aggregation="token", **options)
    assert found == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


def test_a_loss_that_takes_no_inner_one_replaces_the_methods():
    found, gradient, _ = loss_of(compose("grpo", "vespo"), beta=0.5)
    expected, wanted, _ = loss_of(methods.load(folder("vespo")))
    assert found == expected
    assert torch.equal(gradient, wanted)


def test_advantages_of_the_method_are_changed_in_the_order_given():
    """Leave-one-out advantages 1 and -1; alpha 0.4 times entropies 0.5 and 2, at most half of 1."""
    entropy = torch.tensor([[0.5, 2.0], [0.5, 2.0]], dtype=D)
    rollouts = SimpleNamespace(
        group=torch.tensor([0, 0]), mask=torch.ones(2, 2, dtype=torch.bool), old=lambda name: entropy
    )
    method = compose("rloo", "entropy-advantage", "high-entropy-tokens:share=0.5")
    given = {"rollouts": rollouts, "config": method.config({"beta": 0.0}), "state": {}}
    advantages, columns = method.advantages_and_columns(rewards=torch.tensor([1.0, 0.0], dtype=D), **given)
    assert advantages.tolist() == [[pytest.approx(1.2), 1.5], [pytest.approx(-0.8), -0.5]]
    assert columns["chosen"].tolist() == [[False, True], [False, True]]
    assert columns["bonus"].tolist() == [[0.2, 0.5], [0.2, 0.5]]


@pytest.mark.parametrize(
    ("name", "modifiers", "message"),
    [
        ("grpo", ["dapo"], "Method 'dapo' is no modifier. Modifiers: posttrain list-methods --modifiers"),
        ("grpo", ["tis", "tis:cap=3"], "Modifier 'tis' is applied twice. Leave one of them out."),
        ("tis", ["tis"], "Modifier 'tis' is applied twice. Leave one of them out."),
        (
            "grpo",
            ["tis:epsilon=0.3"],
            "Option 'epsilon' of modifier 'tis' counts only where it is trained alone. Give it to the method that it "
            "modifies: --epsilon",
        ),
        (
            "grpo",
            ["tis:capp=3"],
            "Unknown option 'capp' of method 'tis'. Did you mean 'cap'?  Its options: posttrain show tis",
        ),
        ("grpo", ["tis:cap=many"], "Option 'cap' is 'many', expected a number."),
        ("dpo", ["tis"], "Modifier 'tis' needs a method with rewards; 'dpo' has no advantages."),
        ("online-dpo", ["tis"], "Modifier 'tis' needs a method with rewards; 'online-dpo' has no advantages."),
        ("gkd", ["tis"], "Modifier 'tis' changes advantages, which the loss of 'gkd' ignores."),
        (
            "gspo",
            ["tis"],
            "Modifier 'tis' weighs tokens, and the loss of 'gspo' takes one advantage a completion.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(name, modifiers, message):
    with pytest.raises(SettingsError) as error:
        compose(name, *modifiers)
    assert str(error.value) == message


def test_a_modifier_that_is_not_there_is_an_error():
    with pytest.raises(MethodError, match="No method is called 'nothing-like-it'"):
        apply_modifiers(methods.load(folder("grpo")), Settings(modifier=["nothing-like-it"]))


def test_two_selections_are_one_too_many(site):
    code = "from posttrain import hookimpl\n\n\n@hookimpl\ndef posttrain_select():\n    return None\n"
    one = site.add("fake-one", code=code, card=CARD)
    with pytest.raises(SettingsError, match=r"'dapo' and 'fake-one' both choose what is learnt from\. Leave one out"):
        apply_modifiers(methods.load(folder("dapo")), Settings(modifier=[str(one)]))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("-policy.completion.lengths[:, None]", "returned a negative weight, -3."),
        ("policy.completion.lengths", "returned (3,). Expected one weight a token (3, 3), or one a completion (3, 1)."),
    ],
)
def test_weights_that_make_no_sense_are_an_error(site, weights, message):
    head = "from posttrain import hookimpl\n\n\n@hookimpl\ndef posttrain_token_weights(policy):\n    return "
    one = site.add("fake-one", code=f"{head}{weights}\n", card=CARD)
    with pytest.raises(PluginError) as error:
        loss_of(apply_modifiers(methods.load(folder("grpo")), Settings(modifier=[str(one)])), beta=0.0)
    assert str(error.value) == f"posttrain_token_weights of 'fake-one' {message}"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('schema = "preference"\nmodifier = true\n', "modifier is true, which needs schema 'prompt' and no pairs."),
        ('schema = "prompt"\nalone = ["beta"]\n', "alone is ['beta'], which only a card with modifier = true has."),
    ],
)
def test_cards_of_modifiers(tmp_path, lines, message):
    file = tmp_path / "method.toml"
    file.write_text(CARD.replace('schema = "prompt"\nmodifier = true\n', lines))
    with pytest.raises(CardError) as error:
        read_card(file)
    assert str(error.value) == f"{file}: {message}"


def run_of(method: str, output: Path, **changes):
    own = {
        "model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": [{"prompt": text} for text in ("ab", "c", "bad")],
        "reward": count_of_a, "output": str(output), "group_size": 3, "max_new_tokens": 4, "batch_size": 2, "steps": 4,
        "learning_rate": 1e-2, "progress": "quiet", "cache": "off", "device": "cpu", "updates_per_rollout": 2,
    }  # fmt: skip
    return api.train(folder(method), **own | changes)


def test_a_run_with_a_modifier_is_the_method_of_its_name_and_resumes(tmp_path):
    """Off-policy updates, draws from the modifier's own state, and a resumed run that goes on with both."""
    options = {"beta": 0.0, "aggregation": "token", "advantage_epsilon": 1e-6}
    text = f"{folder('clip-cov')}:lowest-covariance=-9,highest_covariance=9,clip_cov_ratio=0.3"
    run = run_of("grpo", tmp_path / "one", modifiers=[text], **options)
    own = {"lowest_covariance": -9, "highest_covariance": 9, "clip_cov_ratio": 0.3}
    alone = run_of("clip-cov", tmp_path / "two", **own)
    losses = [line["loss"] for line in run.metrics]
    assert losses == pytest.approx([line["loss"] for line in alone.metrics], abs=1e-7)
    assert run.metrics[-1]["left_out"] == pytest.approx(0.3, abs=0.1)
    facts = json.loads((tmp_path / "one" / "run.json").read_text())
    (recorded,) = facts["modifiers"]
    assert recorded["name"] == "clip-cov"
    assert recorded["version"] == methods.load("clip-cov").card.version
    assert recorded["options"] == own | {"draw": "random", "epsilon": 0.2}
    assert isinstance(run.method, Modified)
    assert run.state["modifier clip-cov"] == {"draws": 4}

    run_of("grpo", tmp_path / "three", modifiers=[text], steps=2, save_every=2, **options)
    given = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": [{"prompt": t} for t in ("ab", "c", "bad")]}
    resumed = api.resume(tmp_path / "three", reward=count_of_a, steps=4, **given)
    assert [line["loss"] for line in resumed.metrics] == losses
