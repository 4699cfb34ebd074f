"""A judge behind a server that speaks the OpenAI chat format."""

import math

import pytest
from posttrain.contract.images import open_picture
from posttrain.errors import RewardError, SettingsError
from posttrain.rewards.judge import load_judge
from posttrain.rewards.judge_prompt import fill, probability, read_verdict
from posttrain.servers import endpoint
from posttrain_testkit.tiny_vision import picture, shown

TRIAL = "What is 1 + 1?"


def chat(text, tops=None):
    """A chat completion; ``tops`` are the alternatives for its first token."""
    choice = {"message": {"role": "assistant", "content": text}}
    if tops is not None:
        alternatives = [{"token": token, "logprob": math.log(p)} for token, p in tops.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": alternatives}]}
    return 200, {"choices": [choice]}


def question(payload):
    (message,) = payload["messages"]
    return message["content"]


def always(text, tops=None):
    return lambda path, payload: chat(text, tops)


def text_of(kind, call):
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def longer_wins(path, payload):
    first, second = (question(payload).split(f"<answer-{name}>\n")[1].split("\n</answer")[0] for name in "AB")
    return chat("A" if len(first) > len(second) else "B")


def test_the_verdicts_text_is_certain(serve):
    fake = serve(longer_wins)
    judge = load_judge(f"{fake.url}#org/judge")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why {x}?"}]
    assert judge(["q", messages, "q"], ["aaa", "a", "same"], ["a", "{first}", "same"]) == [1.0, 0.0, 0.5]
    trial, *asked = fake.asked
    assert TRIAL in question(trial)
    assert len(asked) == 4  # both orders of two pairs; equal answers are not asked about
    assert trial["model"] == "org/judge"
    assert trial["temperature"] == 0
    assert trial["logprobs"] is True
    (conversation,) = {question(p).split("<task>\n")[1].split("\n</task>")[0] for p in asked} - {"q"}
    assert conversation == "system: Be brief.\n\nuser: Why {x}?"


def test_probabilities_come_from_the_verdicts_token(serve):
    """A has .5 + .1, B .2: .75, and in the other order .75 for the other answer."""
    fake = serve(always("A", {"A": 0.5, " A": 0.1, "B": 0.2, "The": 0.2}))
    one_order = load_judge(f"{fake.url}#m", {"both_orders": "false"})
    assert one_order(["q"], ["x"], ["y"]) == pytest.approx([0.75])
    assert load_judge(f"{fake.url}#m")(["q"], ["x"], ["y"]) == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A", "A"),
        (" **B**\n", "B"),
        ("B. The first one is wrong", "B"),
        ("A) because", "A"),
        ("Answer B", "B"),
        ("Verdict: A", "A"),
        ("The better answer is **B**.", "B"),
        ("[[A]]", "A"),
        ("B\n\nIt is right.", "B"),
        ("<think>A is fine, but B</think>\n\nB", "B"),
        ("A good answer has to be kind", None),
        ("A is better than B", None),
        ("A: 7, B: 9", None),
        ("B, no, the better answer is A", None),
        ("<think>A", None),
        ("both", None),
        ("C", None),
        ("", None),
    ],
)
def test_reading_verdicts(text, label):
    found = read_verdict(text)
    assert (found and found[0]) == label
    assert found is None or text[found[1]] == label
    assert probability(text, None) == (None if label is None else float(label == "A"))


def test_the_token_of_the_verdict_is_found_behind_others():
    def token(text, **tops):
        return {"token": text, "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in tops.items()]}

    tokens = [token("Answer", A=1.0), token(":", B=1.0), token(" B", A=0.1, B=0.4)]
    assert probability("Answer: B", tokens) == pytest.approx(0.2)
    assert probability("Answer: B", tokens[:2]) == 0.0  # no alternatives for the verdict: it is certain
    assert probability("Thus: B", tokens) == 0.0  # tokens that are not the text's
    assert probability("A", [token("A", B=0.4)]) == 1.0  # a verdict that is not among its alternatives


def test_braces_and_places_in_answers_stay(tmp_path):
    assert fill("{prompt}|{first}|{second}|{x}", "{second}", "{prompt}", "{{}}") == "{second}|{prompt}|{{}}|{x}"


def test_an_unreadable_verdict_is_none(serve):
    fake = serve(lambda path, payload: chat("A" if TRIAL in question(payload) else "Both are fine."))
    assert load_judge(f"{fake.url}#m")(["q"], ["x"], ["y"]) == [None]


def test_one_unreadable_order_makes_the_pair_none(serve):
    """The other order alone would bring the judge's bias back."""
    fake = serve(lambda path, payload: chat("A" if "<answer-A>\n2\n" in question(payload) else "?"))
    assert load_judge(f"{fake.url}#m")(["q"], ["2"], ["3"]) == [None]
    assert load_judge(f"{fake.url}#m", {"both_orders": "no"})(["q", "q"], ["2", "3"], ["3", "2"]) == [1.0, None]


def test_a_pair_too_long_for_the_judge_is_none(serve):
    message = "This model's maximum context length is 512 tokens. However, you requested 16 max_tokens and temperature"

    def answer(path, payload):
        return (400, {"error": {"message": message}}) if "yyyy" in question(payload) else chat("B")

    fake = serve(answer)
    judge = load_judge(f"{fake.url}#m", {"both_orders": "false"})
    assert judge(["q", "q"], ["x", "x"], ["y" * 99, "z"]) == [None, 0.0]
    assert "temperature" in judge.ask.optional


def test_a_server_that_fails_for_a_while(serve, waits):
    replies = iter([chat("A"), (500, b""), (503, b""), chat("A")])
    judge = load_judge(f"{serve(lambda *_: next(replies)).url}#m", {"both_orders": "false"})
    assert judge(["q"], ["x"], ["y"]) == [1.0]
    assert waits == [1.0, 2.0]


def test_parameters_that_a_server_does_not_take_are_left_out(serve):
    def answer(path, payload):
        if "max_tokens" in payload:
            return 400, {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'."}}
        for name in ("temperature", "logprobs", "top_logprobs"):
            if name in payload:
                return 422, {"error": {"message": f"{name} is not supported by this model"}}
        return chat("B")

    fake = serve(answer)
    judge = load_judge(f"{fake.url}#m", {"max_tokens": "40"})
    assert set(fake.asked[-1]) == {"model", "messages", "max_completion_tokens"}
    assert fake.asked[-1]["max_completion_tokens"] == 40
    before = len(fake.asked)
    assert judge(["q"], ["x"], ["y"]) == [0.5]
    assert len(fake.asked) == before + 2  # learnt once


def test_a_server_that_gives_few_alternatives(serve):
    def answer(path, payload):
        if payload["top_logprobs"] > 5:
            return 400, {"error": "Requested sample logprobs of 20, which is greater than max allowed: 5"}
        return chat("A", {"A": 0.6, "B": 0.2})

    judge = load_judge(f"{serve(answer).url}#m", {"both_orders": "false"})
    assert judge(["q"], ["x"], ["y"]) == pytest.approx([0.75])


def test_the_only_model_needs_no_name(serve):
    models = ["one"]

    def answer(path, payload):
        return (200, {"data": [{"id": name} for name in models]}) if payload is None else chat("A")

    fake = serve(answer)
    load_judge(fake.url)
    assert fake.asked[-1]["model"] == "one"
    models.append("two")
    assert text_of(RewardError, lambda: load_judge(fake.url)) == (
        f"The judge at {fake.url} has 2 models (one, two). Name one: --judge http://HOST:PORT/v1#MODEL"
    )


def test_mistakes_show_before_the_run(serve, nowhere, waits, monkeypatch):
    def text(answer, **options):
        fake = serve(answer)
        return text_of(RewardError, lambda: load_judge(f"{fake.url}#m", options)).replace(fake.url, "URL")

    assert text_of(RewardError, lambda: load_judge(f"{nowhere}#m")) == (
        f"The judge at {nowhere} cannot be reached (Connection refused, 2 attempts). Start the server, or mend the "
        "address: --judge http://HOST:PORT/v1#MODEL"
    )
    monkeypatch.setenv("MINE", "sk-secret")
    assert text(lambda *_: (401, {"error": "no key sk-secret"}), key_env="MINE") == (
        "The judge at URL refuses the key (401: no key ***). Name the environment variable that holds it: "
        "--judge-options key_env=NAME"
    )
    assert text(lambda *_: (404, {"error": {"message": "The model `m` does not exist."}})) == (
        "The judge at URL answers 404: The model `m` does not exist. Expected an OpenAI-compatible server and a model "
        "that it has: --judge http://HOST:PORT/v1#MODEL"
    )
    assert text(always("Okay, the user wants")) == (
        "The judge m at URL answers 'Okay, the user wants' to a trial question, expected A or B. A model that thinks "
        "first needs more room: --judge-options max_tokens=2048"
    )
    for garbage in (
        {"choices": []},
        [1],
        {"choices": [{"message": None}]},
        {"choices": [{"logprobs": {"content": [7]}}]},
    ):
        assert text(lambda *_, found=garbage: (200, found)) == (
            f"The judge at URL answers in a form that is not a chat completion: {str(garbage)!r}. Expected an "
            "OpenAI-compatible server: --judge http://HOST:PORT/v1#MODEL"
        )


def test_a_server_that_dies_in_a_run(serve, waits):
    replies = iter([chat("A")])
    fake = serve(lambda *_: next(replies, (500, {"error": "down"})))
    judge = load_judge(f"{fake.url}#m", {"retries": "1", "workers": "1"})
    assert text_of(RewardError, lambda: judge(["q"], ["x"], ["y"])) == (
        f"The judge at {fake.url} cannot be reached (status 500: down, 2 attempts). Start the server, or mend the "
        "address: --judge http://HOST:PORT/v1#MODEL"
    )


def test_keys_of_the_usual_variable(serve, monkeypatch):
    monkeypatch.setenv(endpoint.KEY, "sk-usual")
    fake = serve(always("A"))
    load_judge(f"{fake.url}#m")
    assert fake.headers[-1]["Authorization"] == "Bearer sk-usual"


def test_templates(serve, tmp_path):
    file = tmp_path / "question.txt"
    file.write_text("{second} or {first} for {prompt}? JSON: {}")
    fake = serve(always("A"))
    load_judge(f"{fake.url}#m", {"template": str(file)})
    assert question(fake.asked[-1]) == "3 or 2 for What is 1 + 1?? JSON: {}"
    file.write_text("{first} {second}")
    assert text_of(SettingsError, lambda: load_judge(f"{fake.url}#m", {"template": str(file)})) == (
        f"judge template '{file}' has no {{prompt}}. Expected {{prompt}}, {{first}} and {{second}}, and a question "
        "that is answered with A or B."
    )
    missing = tmp_path / "no.txt"
    assert text_of(SettingsError, lambda: load_judge(f"{fake.url}#m", {"template": str(missing)})).startswith(
        f"judge template '{missing}' cannot be read ("
    )


def test_options_are_checked(nowhere):
    def text(**options):
        return text_of(SettingsError, lambda: load_judge(f"{nowhere}#m", options))

    assert text(worker="3") == (
        "This judge has no option 'worker'. Did you mean 'workers'? It has: both_orders, template, key_env, timeout, "
        "retries, workers, max_tokens."
    )
    assert text(timeout="soon") == "Option 'judge-options timeout' is 'soon', expected a number."
    assert text(workers="0") == "Option 'judge-options workers' is 0, expected at least 1."
    assert text(timeout="nan") == "Option 'judge-options timeout' is 'nan', expected a finite number."
    assert text(both_orders="maybe") == "Option 'judge-options both_orders' is 'maybe', expected true or false."


def test_a_model_that_sees_is_sent_the_pictures_where_the_prompt_has_them(serve):
    fake = serve(always("A"))
    judge = load_judge(f"{fake.url}#org/judge", {"both_orders": "false"})
    assert judge([[shown("see ", 1, " and ", 2)]], ["a"], ["b"], [[picture(1), picture(2)]]) == [1.0]
    content = question(fake.asked[-1])
    assert [part["type"] for part in content] == ["text", "image_url", "text", "image_url", "text"]
    sent = [open_picture(part["image_url"]["url"]) for part in content if part["type"] == "image_url"]
    assert [one.tobytes() for one in sent] == [picture(seed).tobytes() for seed in (1, 2)]
