"""Options: the order of their sources, the types of their values, the texts of mistakes."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from posttrain.assembly import config
from posttrain.catalogue.cards import Card
from posttrain.catalogue.defaults import method_options, shared_options, usual_options
from posttrain.catalogue.discovery import locate
from posttrain.errors import CardError, MethodError, SettingsError
from posttrain.settings import EXPERT, SECTIONS, Settings, names_of
from posttrain.settings.options import Option, read_options
from posttrain.settings.values import check_values

BETA = [Option("beta", float, 0.1, "Strength.")]


def card(**defaults):
    return Card("mine", "1", "experimental", "", ("preference",), defaults=defaults, path=Path("mine/method.toml"))


def settings(file=None, flags=None, **defaults):
    resolved, _ = config.resolve(card(**defaults), BETA, file or {}, flags or {}, "run.yaml")
    return SimpleNamespace(**resolved.flat())


def test_each_source_wins_over_the_ones_before():
    assert settings().batch_size == 8  # the fallback of every run
    assert settings(batch_size=64).batch_size == 64
    assert settings({"batch_size": 32}, batch_size=64).batch_size == 32
    assert settings({"batch_size": 32}, {"batch_size": "16"}, batch_size=64).batch_size == 16
    assert settings().optimizer == "adamw"  # the dataclass itself


def test_options_of_the_method_are_apart_and_only_those_given():
    _, own = config.resolve(card(), BETA, {}, {"beta": "0.3", "steps": "4"})
    assert own == {"beta": 0.3}
    assert config.resolve(card(), BETA, {}, {})[1] == {}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lora": True}, 1e-5),
        ({"lora": True, "learning_rate": "3e-4"}, 3e-4),
        ({"dora": True}, 1e-5),
        ({"quantize": "nf4"}, 1e-5),
        ({}, 1e-6),
    ],
)
def test_adapters_learn_ten_times_faster_unless_told(given, expected):
    assert settings({}, given, learning_rate=1e-6).learning_rate == pytest.approx(expected, rel=1e-12)


def test_quantized_weights_imply_an_adapter_and_cannot_do_without():
    assert settings({}, {"quantize": "nf4"}).lora
    with pytest.raises(SettingsError, match=r"^Option 'quantize' trains an adapter, but lora is false"):
        settings({}, {"quantize": "nf4", "lora": False})


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("columns", ["prompt=question,completion=answer"], {"prompt": "question", "completion": "answer"}),
        ("columns", ["a=b", "c=d"], {"a": "b", "c": "d"}),
        ("reward_options", ["regex.pattern=a{1,3}b,length.n=9"], {"regex.pattern": "a{1,3}b", "length.n": "9"}),
        ("data", ["a,b.jsonl", "c.jsonl=2"], ["a,b.jsonl", "c.jsonl=2"]),
        ("data", "one.jsonl", ["one.jsonl"]),
        ("lora_targets", ["q_proj,v_proj"], ["q_proj", "v_proj"]),
        ("stop", [","], [","]),
        ("epochs", "2", 2.0),
        ("steps", "1_000", 1000),
        ("shuffle", False, False),
        ("learning_rate", "1e-5", 1e-5),
        ("max_length", None, None),
    ],
)
def test_values(key, text, value):
    assert getattr(settings({}, {key: text}), key) == value


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ({"stepz": 3}, "run.yaml: Unknown option 'stepz'. Did you mean 'steps'?  All options: posttrain show mine"),
        ({"learning-rate": 1}, "Unknown option 'learning-rate'. Did you mean 'learning_rate'?"),
        ({"steps": "many"}, "run.yaml: Option 'steps' is 'many', expected a whole number or none."),
        ({"steps": True}, "run.yaml: Option 'steps' is True, expected a whole number or none."),
        ({"shuffle": 1}, "run.yaml: Option 'shuffle' is 1, expected true or false."),
        (
            {"schedule": "flat"},
            "Option 'schedule' is 'flat', expected one of constant, linear, cosine, cosine_with_restarts,",
        ),
        ({"columns": "prompt"}, "run.yaml: Option 'columns' is 'prompt', expected NAME=VALUE pairs or none."),
        ({"model": ["a"]}, "run.yaml: Option 'model' is ['a'], expected text."),
        ({"beta": []}, "run.yaml: Option 'beta' is [], expected a number."),
        ({"output": ""}, "run.yaml: output is '', which names nothing. Leave it out, or give it a value."),
        ({"steps": float("inf")}, "run.yaml: Option 'steps' is inf, expected a whole number or none."),
        ({"seed": "-inf"}, "run.yaml: Option 'seed' is '-inf', expected a whole number."),
        ({"learning_rate": "nan"}, "run.yaml: Option 'learning_rate' is 'nan', expected a finite number."),
        ({"beta": 10**400}, "run.yaml: Option 'beta' is a number of about 401 digits, expected a number."),
        ({"steps": "x" * 100_000}, f"run.yaml: Option 'steps' is '{'x' * 56}..., expected a whole number or none."),
        ({"s" * 100_000: 1}, f"run.yaml: Unknown option '{'s' * 97}...'."),
    ],
)
def test_mistakes_name_file_key_value_and_expectation(file, text):
    """D6: a typing error in a file is never ignored."""
    with pytest.raises(SettingsError) as error:
        settings(file)
    assert text in str(error.value)


def test_card_defaults_are_checked_too():
    with pytest.raises(CardError, match=r"mine/method\.toml: \[defaults\] Unknown option 'beta2'"):
        settings(beta2=1)
    with pytest.raises(SettingsError, match=r"\[defaults\] Option 'batch_size' is 'x'"):
        settings(batch_size="x")


def test_printed_configuration_reads_back_as_itself(tmp_path):
    first, own = config.resolve(
        card(learning_rate=1e-6), BETA, {}, {"lora": True, "data": ["a.jsonl"], "beta": "2", "columns": ["a=b"]}
    )
    file = tmp_path / "run.yaml"
    file.write_text(config.as_yaml("mine", first.flat(), own, BETA))
    assert config.read_file(file)["method"] == "mine"
    again, own_again = config.resolve(card(learning_rate=1e-6), BETA, config.read_file(file), {})
    assert again == first
    assert own_again == own


def test_toml_and_yaml_say_the_same(tmp_path):
    (tmp_path / "a.toml").write_text('steps = 3\ndata = ["x"]\n')
    (tmp_path / "a.yml").write_text("steps: 3\ndata: [x]\n")
    assert config.read_file(tmp_path / "a.toml") == config.read_file(tmp_path / "a.yml") == {"steps": 3, "data": ["x"]}


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.yaml", b"- 1", "holds list, expected keys and values such as 'steps: 100'."),
        ("a.yaml", b"a: [", "is not valid YAML: "),
        ("a.toml", b"a = ", "is not valid TOML: "),
        ("a.ini", b"", "ends in '.ini', expected .yaml, .yml or .toml."),
        ("a.yaml", b"\xff", "cannot be read: invalid start byte."),
        ("b.yaml", None, "cannot be read: No such file or directory."),
        ("a.yaml", b"a: " + b"[" * 100_000, " line 1: is nested more than 50 deep, expected keys and values."),
        ("a.yaml", b"a: 1\nb: " + b"{a: " * 1000, " line 2: is nested more than 50 deep, expected keys and values."),
        ("a.yaml", b"a:\n" + b"- " * 1000 + b"x", " line 2: is nested more than 50 deep, expected keys and values."),
        (
            "a.yaml",
            b"\n".join(b" " * depth + b"a:" for depth in range(1000)),
            "cannot be read: nested too deeply.",
        ),
        ("a.yaml", b"a: " + b"1" * 5001, "cannot be read: Exceeds the limit (4300"),
        ("a.toml", b"a = " + b"[" * 100_000, "is not valid TOML: it is nested too deeply."),
        ("a.toml", b"a = " + b"1" * 5001, "is not valid TOML: Exceeds the limit (4300"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, name, content, text):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError) as error:
        config.read_file(tmp_path / name)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_method_option_that_hides_a_shared_one_is_an_error(tmp_path):
    (tmp_path / "__init__.py").write_text("class Config:\n    steps: int = 1\n")
    bad = Card("mine", "1", "experimental", "", ("preference",), path=tmp_path / "method.toml")
    with pytest.raises(MethodError, match="has an option 'steps', which every run has"):
        method_options(bad)


def test_options_are_read_from_source(tmp_path):
    file = tmp_path / "options.py"
    file.write_text(
        "from typing import Literal, Optional\nimport missing_module\n\n\nclass Config:\n"
        "    a: float = -1e-3\n    '''First\n    two lines.'''\n"
        "    # Part\n    b: 'Optional[int]' = None\n    c: Literal['x', 'y'] | None = 'x'\n"
        "    d: list[str] = field(default_factory=list)\n    e: float = 1 / 3\n    f: Strange = None\n"
    )
    options = {option.name: option for option in read_options(file)}
    assert (options["a"].default, options["a"].help, options["a"].section) == (-1e-3, "First two lines.", "")
    assert options["b"].kind == int | None
    assert options["b"].section == "Part"
    assert options["d"].default == []
    assert options["e"].default == "1 / 3"
    assert [option.flag for option in options.values()] == ["--a", "--b", "--c", "--d", "--e", "--f"]


def test_every_shared_option_is_documented_and_has_a_known_type():
    for option in shared_options():
        assert option.help, option.name
        assert "Any" not in str(option.kind), option.name
        assert option.section, option.name


def test_printed_configuration_is_plain_yaml():
    found, own = config.resolve(card(), BETA, {}, {})
    text = config.as_yaml("mine", found.flat(), own, BETA)
    assert yaml.safe_load(text)["beta"] == 0.1


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"adam_beta1": 1.0}, "adam-beta1 is 1, expected a number from 0 to below 1."),
        ({"adam_beta2": -0.1}, "adam-beta2 is -0.1, expected a number from 0 to below 1."),
        ({"adam_epsilon": -1.0}, "adam-epsilon is -1, expected a number from 0 upwards."),
        ({"weight_decay": float("inf")}, "weight-decay is inf, expected a finite number."),
        ({"learning_rate": float("nan")}, "learning-rate is nan, expected a finite number."),
        ({"reward_timeout": -1.0}, "reward-timeout is -1, expected a number from 0 to below 1e+08."),
        ({"data": ["a.jsonl", ""]}, "data is ['a.jsonl', ''], which names nothing. Leave it out, or give it a value."),
        ({"reference_model": ""}, "reference-model is '', which names nothing. Leave it out, or give it a value."),
        ({"chat_template": "a\0b"}, "chat-template is 'a\\x00b', which holds a null character."),
    ],
)
def test_values_that_no_run_can_have(given, text):
    with pytest.raises(SettingsError) as error:
        check_values(Settings(**given).flat())
    assert str(error.value) == text


def test_values_that_a_run_may_have():
    check_values(Settings(max_grad_norm=float("inf"), stop=[" "], system_prompt="").flat())


def test_an_alias_that_stands_for_billions_is_shown_shortened(tmp_path):
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    (tmp_path / "a.yaml").write_text("\n".join(lines) + "\nsteps: *a19\n")
    file = config.read_file(tmp_path / "a.yaml")
    with pytest.raises(SettingsError) as error:
        settings({"steps": file["steps"]})
    assert len(str(error.value)) < 200


def test_a_file_may_group_its_options_by_section():
    grouped = settings({"data": {"max_length": 512, "limit": 3}, "optim": {"learning_rate": 1e-4}, "steps": 7})
    assert (grouped.max_length, grouped.limit, grouped.learning_rate, grouped.steps) == (512, 3, 1e-4, 7)
    assert settings({"data": ["a.jsonl"], "columns": {"prompt": "q"}}).data == ["a.jsonl"]  # an option, not a section


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            {"data": {"max_lenght": 5}},
            "run.yaml: section 'data': Unknown option 'max_lenght'. Did you mean 'max_length'?",
        ),
        ({"optim": {"steps": 5}}, "run.yaml: section 'optim': Unknown option 'steps'."),
        ({"steps": 5, "length": {"steps": 6}}, "run.yaml: option 'steps' is given twice. Leave one of them out."),
    ],
)
def test_mistakes_inside_a_section_are_named(file, text):
    with pytest.raises(SettingsError) as error:
        settings(file)
    assert str(error.value).startswith(text)


def test_an_option_stands_in_one_section_and_settings_do_not_change():
    names = [name for section in SECTIONS for name in names_of(section)]
    assert len(names) == len(set(names))
    assert set(names) >= EXPERT
    whole = Settings(steps=4, lora=True)
    assert Settings(**whole.flat()) == whole != whole.replace(steps=5)
    assert (whole.length.steps, whole.replace(steps=5).length.steps, whole.get("lora")) == (4, 5, True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        whole.length.steps = 9
    with pytest.raises(TypeError, match="Settings has no option 'stpes'"):
        Settings(stpes=4)


def test_help_leaves_out_what_has_no_effect_and_what_experts_set():
    offline = {option.name for option in usual_options(locate("sft").card)}
    online = {option.name for option in usual_options(locate("grpo").card)}
    assert {"max_length", "learning_rate", "lora"} <= offline & online
    assert online - offline >= {"group_size", "temperature", "reward", "generation"}
    assert not EXPERT & (offline | online)
    assert {option.name for option in shared_options()} >= EXPERT
