"""Pairwise judges, which compare two answers: a server, a model, a reward model or a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.errors import RewardError, SettingsError, closest, short
from posttrain.rewards.blame import Batch, failure
from posttrain.rewards.guard import LIMIT, Broken, guarded
from posttrain.rewards.load import _arguments, _from_file, _installed, installed_rewards
from posttrain.rewards.process import Own
from posttrain.rewards.reward import is_async
from posttrain.rewards.scoring import await_all
from posttrain.settings import options
from posttrain.settings.secret_options import revealed

#: ``(prompts, firsts, seconds)``, and ``images=`` where prompts have some and it has that parameter.
Ask = Callable[..., Any]
_FORMS = (
    "http://HOST:PORT/v1#MODEL, the folder or Hub id of a chat model, the folder of a reward model, file.py:function"
)
#: Least values of numeric options, where they are not 1.
_LEAST = {"retries": 0, "timeout": 0.001}
_ARGUMENTS = ("prompts", "firsts", "seconds")
Images = list[list[Any]]


class Judge:
    """``judge(prompts, firsts, seconds)``: the probability that each first answer is better than the second.

    ``ask`` does the same for a batch in one order. With ``both_orders`` every pair is asked twice, the second time with
    its answers swapped, and the mean is taken: this cancels a judge's position bias.
    """

    def __init__(self, name: str, ask: Ask, both_orders: bool = True):
        self.name = name
        self.ask = ask
        self.both_orders = both_orders

    def __call__(
        self, prompts: list[Any], firsts: list[str], seconds: list[str], images: Images | None = None
    ) -> list[float | None]:
        """Return one value per pair, None where the judge gives none. Equal answers are 0.5 and not asked about.

        ``images`` are pictures of PIL, those of each prompt. Raises RewardError for a judge that cannot be shown them.
        """
        pairs = list(zip(prompts, firsts, seconds, images or [[] for _ in prompts], strict=True))
        unlike = [place for place, (_, first, second, _) in enumerate(pairs) if first != second]
        questions = [pairs[place] for place in unlike]
        if self.both_orders:
            questions += [(prompt, second, first, shown) for prompt, first, second, shown in questions]
        answers = self._answers(questions) if questions else []
        found: list[float | None] = [0.5] * len(pairs)
        for number, place in enumerate(unlike):
            value = answers[number]
            if self.both_orders:
                other = answers[len(unlike) + number]
                # A single order would bring the position bias back.
                value = None if value is None or other is None else (value + 1.0 - other) / 2
            found[place] = value
        return found

    def _answers(self, questions: list[tuple[Any, str, str, list[Any]]]) -> list[float | None]:
        prompts, firsts, seconds, images = (list(column) for column in zip(*questions, strict=True))
        shown = {"images": images} if any(images) else {}
        if shown and "images" not in inspect.signature(self.ask).parameters:
            raise RewardError(
                f"Judge '{self.name}' is not shown images, and the prompts have some. Use a vision-language model, or "
                "a function (prompts, firsts, seconds, images)."
            )
        result = self.ask(prompts, firsts, seconds, **shown)
        values = result.tolist() if callable(getattr(result, "tolist", None)) else result
        if not isinstance(values, list | tuple) or len(values) != len(questions):
            size = f"{len(values)} values" if isinstance(values, list | tuple) else short(values)
            raise RewardError(
                f"Judge '{self.name}' returned {size} for {len(questions)} pairs, expected a probability or None each."
            )
        return [self._probability(value) for value in values]

    def _probability(self, value: Any) -> float | None:
        if value is None:
            return None
        number = value.item() if callable(getattr(value, "item", None)) else value
        if not isinstance(number, int | float) or not 0 <= number <= 1:
            raise RewardError(
                f"Judge '{self.name}' returned {short(value)}, expected the probability from 0 to 1 that the first "
                "answer is better, or None."
            )
        return float(number)


def load_judge(
    spec: str | Callable[..., Any],
    given: dict[str, str] | None = None,
    tokenizer: Any = None,
    limit: float | None = LIMIT,
) -> Judge:
    """Load the judge that ``spec`` names, with its options ``given`` as NAME=VALUE.

    ``spec`` is ``http://HOST:PORT/v1#MODEL`` (an OpenAI-compatible chat server), the folder or Hub id of a chat model,
    the folder of a reward model, ``file.py:function``, an installed name, or a function ``(prompts, firsts, seconds)``;
    one with a parameter ``tokenizer`` gets the run's, and ``limit`` seconds for a call. Raises RewardError, ModelError
    and SettingsError.
    """
    given = revealed("judge_options", given or {})
    if callable(spec):
        return _function(str(getattr(spec, "__name__", type(spec).__name__)), spec, given, tokenizer, limit)
    file, colon, function = spec.rpartition(":")
    if spec.startswith(("http://", "https://")):
        from posttrain.rewards.judge_http import ServerJudge

        orders = _both_orders(given)
        return Judge(spec, ServerJudge(spec, **_checked(ServerJudge, given)), orders)
    if colon and file.endswith(".py"):
        return _function(function, _from_file(Path(file), function, "judge"), given, tokenizer, limit)
    if spec in installed_rewards():
        return _function(spec, _installed(spec), given, tokenizer, limit)
    return _model(spec, given)


def _model(spec: str, given: dict[str, str]) -> Judge:
    """Load a model from a folder or the Hub as a judge."""
    folder = Path(spec).expanduser()
    if not folder.is_dir() and (spec.count("/") != 1 or spec.startswith((".", "/", "~"))):
        raise RewardError(f"No judge is called '{spec}'.{closest(spec, installed_rewards())} Expected {_FORMS}.")
    from posttrain.rewards.judge_image_model import ImageJudge, sees_images
    from posttrain.rewards.judge_model import ModelJudge, RewardJudge, has_reward_head

    if folder.is_dir() and has_reward_head(spec):
        # Its scores do not depend on the order, so asking twice would only cost time.
        return Judge(folder.resolve().name, RewardJudge(str(folder), **_checked(RewardJudge, given)), both_orders=False)
    orders = _both_orders(given)
    arguments = _checked(ModelJudge, given)
    return Judge(folder.name, (ImageJudge if sees_images(spec) else ModelJudge)(spec, **arguments), orders)


def _function(
    name: str, function: Callable[..., Any], given: dict[str, str], tokenizer: Any, limit: float | None
) -> Judge:
    parameters = inspect.signature(function).parameters
    missing = [argument for argument in _ARGUMENTS if argument not in parameters]
    if missing and "completions" in parameters:
        raise RewardError(
            f"'{name}' is a reward: it scores one answer at a time. Give it with --reward; a judge takes "
            "(prompts, firsts, seconds)."
        )
    if missing:
        raise RewardError(f"Judge '{name}' does not take {missing[0]}. Expected a function (prompts, firsts, seconds).")
    orders = _both_orders(given)
    arguments = _arguments(name, function, given, "judge", (*_ARGUMENTS, "images"))
    if tokenizer is not None and "tokenizer" in parameters:
        arguments.setdefault("tokenizer", tokenizer)
    kind = _ShownFunction if "images" in parameters else _Function
    return Judge(name, kind(name, functools.partial(function, **arguments), limit), orders)


class _Function:
    """A function, plain or async, whose exceptions name their origin."""

    def __init__(self, name: str, function: functools.partial[Any], limit: float | None):
        self.title = f"Judge '{name}'"
        self.function = function
        self.limit = limit
        self.own = Own()

    def __call__(self, prompts: list[Any], firsts: list[str], seconds: list[str]) -> Any:
        return self._asked(prompts=prompts, firsts=firsts, seconds=seconds)

    def _asked(self, **columns: list[Any]) -> Any:
        try:
            return self._call(columns)
        except Broken as found:

            def again(rows: range) -> Any:
                return self._call({name: values[rows.start : rows.stop] for name, values in columns.items()})

            batch = Batch("pair", columns["firsts"], columns["prompts"], again)
            raise failure(self.title, found, batch, self.limit) from found.error

    def _call(self, columns: dict[str, list[Any]]) -> Any:
        def call() -> Any:
            return self.function(**columns)

        if not is_async(self.function):
            return guarded(call, self.title, self.limit, self.own)
        (result,) = await_all([(call(), self.limit, self.own)], self.title)
        if isinstance(result, Broken):
            raise result
        return result


class _ShownFunction(_Function):
    """A function that takes the images of the prompts, none for prompts of text."""

    def __call__(self, prompts: list[Any], firsts: list[str], seconds: list[str], images: Images | None = None) -> Any:
        return self._asked(prompts=prompts, firsts=firsts, seconds=seconds, images=images or [[] for _ in prompts])


def _both_orders(given: dict[str, Any]) -> bool:
    """Remove the option of every order-dependent judge from ``given`` and return it."""
    return bool(options.cast("judge-options both_orders", given.pop("both_orders", True), bool))


def _checked(kind: type, given: dict[str, Any]) -> dict[str, Any]:
    """Check ``given`` as arguments of a judge of this kind. Raises SettingsError."""
    known = list(inspect.signature(kind, eval_str=True).parameters.values())[1:]
    kinds = {parameter.name: parameter.annotation for parameter in known}
    names = [*kinds] if kind.__name__ == "RewardJudge" else ["both_orders", *kinds]
    arguments = {}
    for name, text in given.items():
        if name not in kinds:
            raise SettingsError(f"This judge has no option '{name}'.{closest(name, names)} It has: {', '.join(names)}.")
        arguments[name] = options.cast(f"judge-options {name}", text, kinds[name])
        least = _LEAST.get(name, 1)
        if isinstance(arguments[name], int | float) and not arguments[name] >= least:
            raise SettingsError(f"Option 'judge-options {name}' is {text}, expected at least {least}.")
    return arguments
