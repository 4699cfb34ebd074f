"""Loading one method: good ones work, each way of being broken is one sentence that names the plugin."""

import dataclasses
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from posttrain import hookimpl
from posttrain.catalogue import methods
from posttrain.catalogue.cards import Card
from posttrain.errors import DependencyError, PluginError, SettingsError

ROOT = Path(__file__).resolve().parent.parent
CARD = Card("mine", "0.1.0", "experimental", "Mine.", ("preference",))
OPTIONS = '''\
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.1
    level: Literal["token", "sequence"] = "token"
    rounds: int | None = None
    layers: tuple[int, ...] = ()
    flip: bool = False
    names: list[str] | None = None

    def __post_init__(self):
        if self.beta < 0:
            raise ValueError(f"beta is {self.beta}, expected 0 or more.")
'''


def module_with(**hooks):
    module = ModuleType("mine")
    vars(module).update(hooks)
    return module


def test_load_imports_the_named_method_alone(site):
    site.add("fake-other", code="raise SystemExit('imported')")
    site.add("fake")
    method = methods.load("fake")
    config = method.config({"beta": "0.5"})
    assert method.loss(batch=None, policy=4.0, reference=None, config=config, step=None) == 2.0
    assert method.has("posttrain_loss")
    assert not method.has("posttrain_advantages")


def test_load_from_a_folder_reads_it_anew(site, tmp_path):
    package = site.add("fake-loose")
    assert methods.load(str(package)).config({}).beta == 0.1
    file = package / "__init__.py"
    file.write_text(file.read_text().replace("beta: float = 0.1", "beta: float = 0.25"))
    assert methods.load(str(package)).config({}).beta == 0.25


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"beta": "1e-3"}, {"beta": 0.001}),
        ({"beta": 2}, {"beta": 2.0}),
        ({"level": "sequence"}, {"level": "sequence"}),
        ({"rounds": "none"}, {"rounds": None}),
        ({"rounds": "3"}, {"rounds": 3}),
        ({"layers": "1,2"}, {"layers": (1, 2)}),
        ({"flip": "yes"}, {"flip": True}),
        ({"names": ["a,b", "c"]}, {"names": ["a,b", "c"]}),
    ],
)
def test_option_values_become_the_annotated_type(site, options, values):
    site.add("fake", code=OPTIONS)
    config = methods.load("fake").config(options)
    for name, value in values.items():
        assert getattr(config, name) == value
        assert type(getattr(config, name)) is type(value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bta": 1}, "Unknown option 'bta' of method 'fake'. Did you mean 'beta'?  Its options: posttrain show fake"),
        ({"beta": "much"}, "Option 'beta' is 'much', expected a number."),
        ({"beta": True}, "Option 'beta' is True, expected a number."),
        ({"level": "word"}, "Option 'level' is 'word', expected one of token, sequence."),
        ({"rounds": 1.5}, "Option 'rounds' is 1.5, expected a whole number or none."),
        ({"flip": "perhaps"}, "Option 'flip' is 'perhaps', expected true or false."),
        ({"flip": 1}, "Option 'flip' is 1, expected true or false."),
        ({"beta": -1}, "Method 'fake' does not take these options: beta is -1.0, expected 0 or more."),
    ],
)
def test_option_mistakes(site, options, text):
    site.add("fake", code=OPTIONS)
    with pytest.raises(SettingsError) as error:
        methods.load("fake").config(options)
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("import does_not_exist_xyz", DependencyError, "Plugin 'fake' needs the module 'does_not_exist_xyz'"),
        ("def f(:", PluginError, "Plugin 'fake' cannot be imported: SyntaxError: "),
        ("raise SystemExit(3)", PluginError, "Plugin 'fake' cannot be imported: SystemExit: 3"),
        ("raise ValueError('a\\nb')", PluginError, "Plugin 'fake' cannot be imported: ValueError: a b"),
        ("assert False", PluginError, "Plugin 'fake' cannot be imported: AssertionError"),
    ],
)
@pytest.mark.parametrize("from_folder", [False, True])
def test_plugin_that_cannot_be_imported(site, code, kind, text, from_folder):
    package = site.add("fake", code=code)
    with pytest.raises(kind) as error:
        methods.load(str(package) if from_folder else "fake")
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


def test_unknown_hook_has_a_suggestion():
    def posttrain_los(policy):
        return policy

    with pytest.raises(PluginError) as error:
        methods.from_module(module_with(posttrain_los=hookimpl(posttrain_los)), CARD)
    assert str(error.value) == "Plugin 'mine' implements unknown hook 'posttrain_los'. Did you mean 'posttrain_loss'?"


def test_hook_without_its_mark_is_an_error_not_ignored():
    def posttrain_loss(policy):
        return policy

    with pytest.raises(PluginError, match=r"not marked as a hook\. Write @posttrain\.hookimpl above it\.$"):
        methods.from_module(module_with(posttrain_loss=posttrain_loss), CARD)


def test_unknown_argument_has_a_suggestion():
    def posttrain_loss(polcy):
        return polcy

    with pytest.raises(PluginError) as error:
        methods.from_module(module_with(posttrain_loss=hookimpl(posttrain_loss)), CARD)
    assert str(error.value) == (
        "'posttrain_loss' of 'mine' takes 'polcy', which that hook does not have. Did you mean 'policy'? "
        "Arguments: batch, policy, reference, config, step, inner"
    )


@pytest.mark.parametrize("options", [{}, object, "Config"])
def test_options_must_be_a_dataclass(options):
    with pytest.raises(PluginError) as error:
        methods.from_module(module_with(Config=options), CARD)
    assert str(error.value) == f"Config of 'mine' is {options!r}, expected a dataclass."


def test_a_hook_that_returns_the_options_still_works_and_says_that_it_goes():
    @dataclasses.dataclass(frozen=True)
    class Other:
        beta: float = 0.5

    def posttrain_config():
        return Other

    with pytest.warns(DeprecationWarning, match="The hook posttrain_config is deprecated since posttrain 0.1"):
        method = methods.from_module(module_with(posttrain_config=hookimpl(posttrain_config)), CARD)
    assert method.config({"beta": "2"}) == Other(2.0)
    assert method.notes == [
        "Plugin 'mine': The hook posttrain_config is deprecated since posttrain 0.1 and goes in 1.0. "
        "Use a frozen dataclass named Config in the method's module, which is found without a hook."
    ]
    assert methods.from_module(module_with(Config=Other), CARD).notes == []


def test_options_must_be_frozen(site):
    site.add("fake", code=OPTIONS.replace("(frozen=True)", ""))
    with pytest.raises(PluginError, match=r"write @dataclass\(frozen=True\)"):
        methods.load("fake")


def test_method_without_options_takes_none():
    method = methods.from_module(module_with(), CARD)
    assert method.config({}) == methods.NoOptions()
    with pytest.raises(SettingsError, match="Unknown option 'beta'"):
        method.config({"beta": 1})


def test_hook_that_does_not_exist_cannot_be_asked_for():
    with pytest.raises(ValueError, match="there is no hook 'loss'"):
        methods.from_module(module_with(), CARD).has("loss")


def test_stable_methods_load_from_their_folders():
    folders = sorted((Path(__file__).parent.parent / "plugins").iterdir())
    names = {methods.load(str(folder)).name for folder in folders}
    assert names >= {"sft", "dpo", "reward", "grpo", "rloo"}


def test_a_folder_of_the_same_name_does_not_stand_in_for_the_installed_method(tmp_path):
    """In a notebook a changed copy is tried first and the method after it, in one process."""
    copy = Path(shutil.copytree(ROOT / "plugins" / "sft", tmp_path / "sft"))
    file = copy / "posttrain_method_sft" / "__init__.py"
    file.write_text(file.read_text() + "\nCHANGED = True\n")
    installed = methods.load("sft").module
    assert hasattr(methods.load(str(copy)).module, "CHANGED")
    again = methods.load("sft").module
    assert not hasattr(again, "CHANGED")
    assert again.__file__ == installed.__file__
    assert methods.load("sft").module is again
