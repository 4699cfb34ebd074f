"""``posttrain evaluate``: figures against plain transformers, runs and models, two models, mistakes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from posttrain import api
from posttrain.cli.main import main
from posttrain.errors import SettingsError
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from transformers import LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [{"prompt": "ab" * n, "answer": "b" * n} for n in (1, 2, 3, 4, 5)]
TEXTS = [{"prompt": "ab" * n, "completion": "ba" * (4 - n)} for n in (1, 2, 3)]
PAIRS = [{"prompt": "ab" * n, "chosen": "b" * n, "rejected": "aab"} for n in (1, 2, 3, 4)]


def length_of(prompts, completions, answer):
    return [abs(len(one) - len(right)) / 10 for one, right in zip(completions, answer, strict=True)]


def has_a(prompts, completions):
    return [float("a" in one) for one in completions]


def prefers_long(prompts, firsts, seconds):
    return [0.5 if len(a) == len(b) else float(len(a) > len(b)) for a, b in zip(firsts, seconds, strict=True)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of the same shape on disk."""
    place = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        tiny_model(seed=seed).save_pretrained(place / str(seed))
        tiny_tokenizer().save_pretrained(place / str(seed))
    return [str(place / "1"), str(place / "2")]


def evaluate(model, **keywords):
    keywords = {"device": "cpu", "cache": "off", "max_new_tokens": 6, "say": lambda line: None} | keywords
    if not isinstance(model, str):
        keywords["tokenizer"] = tiny_tokenizer()
    return api.evaluate(model, **keywords)


def plain_logps(model, prompt, completion):
    """Log-probs of a completion's tokens with the end, one row alone, in float64."""
    tokenizer = tiny_tokenizer()
    start = tokenizer.encode(prompt, add_special_tokens=False)
    ids = torch.tensor([[*start, *tokenizer.encode(completion, add_special_tokens=False), tokenizer.eos_token_id]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logits.gather(1, ids[0, 1:, None])[len(start) - 1 :, 0]


def test_texts_as_transformers_sees_them():
    model = tiny_model(dtype=torch.float64)
    rows = [plain_logps(model, row["prompt"], row["completion"]) for row in TEXTS]
    wanted = -torch.cat(rows).mean().item()
    found = evaluate(model, data=TEXTS, dtype="float64").sets[""]
    assert found.figures["loss"].mean == pytest.approx(wanted, abs=1e-9)
    assert found.figures["perplexity"].mean == pytest.approx(math.exp(wanted), rel=1e-9)
    assert found.values["loss"] == pytest.approx([-row.mean().item() for row in rows], abs=1e-9)
    assert found.figures["loss"].low <= wanted <= found.figures["loss"].high


def test_preferences_as_transformers_sees_them():
    model = tiny_model(dtype=torch.float64)
    sums = [
        [plain_logps(model, row["prompt"], row[side]).sum().item() for side in ("chosen", "rejected")] for row in PAIRS
    ]
    means = [
        [plain_logps(model, row["prompt"], row[side]).mean().item() for side in ("chosen", "rejected")] for row in PAIRS
    ]
    found = evaluate(model, data=PAIRS, dtype="float64").sets[""]
    assert found.values["margin"] == pytest.approx([a - b for a, b in sums], abs=1e-9)
    assert found.values["accuracy"] == [float(a > b) for a, b in sums]
    assert found.values["margin_per_token"] == pytest.approx([a - b for a, b in means], abs=1e-9)
    assert 0 < found.figures["accuracy"].mean < 1, "choose rows on which the figures differ"


def test_a_reward_model_is_asked_for_its_scores(tmp_path):
    run = api.train(
        "reward", model=tiny_model("reward-head"), tokenizer=tiny_tokenizer(), data=PAIRS, steps=3, learning_rate=1e-2,
        output=str(tmp_path / "run"), device="cpu", cache="off", progress="quiet", report=False,
    )  # fmt: skip
    found = evaluate(str(tmp_path / "run" / "model"), data=PAIRS).sets[""]
    tokenizer = tiny_tokenizer()
    scores = []
    for row in PAIRS:
        for side in ("chosen", "rejected"):
            ids = [*tokenizer.encode(row["prompt"] + row[side], add_special_tokens=False), tokenizer.eos_token_id]
            with torch.no_grad():
                scores.append(run.model(input_ids=torch.tensor([ids])).logits[0, 0].item())
    wanted = [a - b for a, b in zip(scores[::2], scores[1::2], strict=True)]
    assert found.values["margin"] == pytest.approx(wanted, abs=1e-5)
    assert list(found.figures) == ["accuracy", "margin"]


def test_greedy_answers_are_those_of_transformers():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    found = evaluate(model, data=PROMPTS, reward=length_of).sets[""]
    for line, row in zip(found.lines, PROMPTS, strict=True):
        ids = torch.tensor([tokenizer.encode(row["prompt"], add_special_tokens=False)])
        out = model.generate(
            ids, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=tokenizer.eos_token_id
        )
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert line["completion"] == text
        assert line["reward"] == pytest.approx(abs(len(text) - len(row["answer"])) / 10)
    assert found.values["reward"] == [line["reward"] for line in found.lines]
    assert "right" not in found.figures, "these rewards are not 0 or 1"


def test_samples_are_counted_by_prompt():
    found = evaluate(tiny_model(), data=PROMPTS, reward=has_a, samples=8, k=[1, 3]).sets[""]
    assert [line["prompt"] for line in found.lines] == [n for n in range(5) for _ in range(8)]
    right = [sum(line["reward"] for line in found.lines if line["prompt"] == n) for n in range(5)]
    assert found.values["right"] == [count / 8 for count in right]
    assert found.values["pass@1"] == pytest.approx([count / 8 for count in right])
    three = [1 - math.comb(8 - int(count), 3) / math.comb(8, 3) for count in right]
    assert found.values["pass@3"] == pytest.approx(three)
    again = evaluate(tiny_model(), data=PROMPTS, reward=has_a, samples=8).sets[""]
    assert [line["completion"] for line in again.lines] == [line["completion"] for line in found.lines]
    other = evaluate(tiny_model(), data=PROMPTS, reward=has_a, samples=8, seed=5).sets[""]
    assert [line["completion"] for line in other.lines] != [line["completion"] for line in found.lines]


def test_a_threshold_says_what_is_right():
    found = evaluate(tiny_model(), data=PROMPTS, reward=length_of, samples=4, k=[2], right_at=0.3).sets[""]
    assert found.values["right"] == [
        sum(line["reward"] >= 0.3 for line in found.lines if line["prompt"] == n) / 4 for n in range(5)
    ]
    with pytest.raises(SettingsError, match=r"not 0 or 1.*--right-at"):
        evaluate(tiny_model(), data=PROMPTS, reward=length_of, samples=4, k=[2])


def test_two_models_on_the_same_prompts(folders):
    found = evaluate(folders[0], against=folders[1], data=PROMPTS, reward=length_of, judge=prefers_long)
    alone = [evaluate(folder, data=PROMPTS, reward=length_of).sets[""] for folder in folders]
    assert found.sets[""].values["reward"] == alone[0].values["reward"]
    assert found.others[""].values["reward"] == alone[1].values["reward"]
    gaps = [a - b for a, b in zip(alone[0].values["reward"], alone[1].values["reward"], strict=True)]
    compared = found.comparisons[""]["reward"]
    assert compared.difference.mean == pytest.approx(sum(gaps) / 5)
    assert (compared.wins, compared.losses) == (sum(g > 0 for g in gaps), sum(g < 0 for g in gaps))
    texts = [[line["completion"] for line in one.lines] for one in alone]
    chances = prefers_long(None, *texts)
    assert found.comparisons[""]["preferred"].difference.mean == pytest.approx(sum(2 * c - 1 for c in chances) / 5)
    same = evaluate(folders[0], against=folders[0], data=PROMPTS, reward=length_of)
    assert same.comparisons[""]["reward"].difference.mean == 0
    assert same.comparisons[""]["reward"].p_value == 1


def test_a_run_brings_its_rows_and_rewards(tmp_path, folders, capsys):
    for name, rows in (("train", PROMPTS), ("math", PROMPTS[:2]), ("chat", PROMPTS[2:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.py").write_text("def has_a(prompts, completions):\n    return ['a' in c for c in completions]\n")
    api.train(
        "grpo", model=folders[0], data=str(tmp_path / "train.jsonl"), reward=f"{tmp_path / 'own.py'}:has_a", steps=1,
        eval_data={"math": str(tmp_path / "math.jsonl"), "chat": str(tmp_path / "chat.jsonl")}, batch_size=2,
        group_size=2, max_new_tokens=4, output=str(tmp_path / "run"), device="cpu", cache="off", progress="quiet",
        report=False,
    )  # fmt: skip
    capsys.readouterr()
    assert (
        main(["evaluate", str(tmp_path / "run"), "--json", "--device", "cpu", "--output", str(tmp_path / "out")]) == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert {name: one["rows"] for name, one in said["sets"].items()} == {"math": 2, "chat": 3}
    assert set(said["sets"]["math"]["figures"]) == {"reward", "right", "length", "cut_off"}
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    values = kept.pop("values")
    assert kept == said
    assert sum(values["math"]["reward"]) / 2 == said["sets"]["math"]["figures"]["reward"]["mean"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [line["set"] for line in lines] == ["math"] * 2 + ["chat"] * 3
    assert all(line["tokens"] <= 4 for line in lines), "the run's own length"


def test_the_page_shows_answers_as_text(tmp_path):
    rows = [{"prompt": "<script>alert(1)</script>"}]
    found = evaluate(tiny_model(), data=rows, reward=has_a, max_length=512)
    page = (found.save(tmp_path / "out") / "evaluation.html").read_text()
    assert "&lt;script&gt;alert" in page
    assert "<script>" not in page
    assert "<td>reward</td>" in page


def test_an_environment_is_played():
    found = evaluate(
        "example", environment="guess", environment_options={"size": "3"}, max_new_tokens=8, max_turns=2, device="cpu"
    ).sets[""]
    assert found.rows == 3
    assert all(line["messages"] for line in found.lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "No model was given. Write: posttrain evaluate MODEL --data FILE"),
        (["example", "other"], "2 models were given; the second is --against."),
        (["example"], "No data was given. Name rows to evaluate on: --data FILE"),
        (
            ["example", "--data", "{rows}"],
            "These rows hold prompts alone. Name what scores the answers: --reward exact",
        ),
        (
            ["example", "--data", "{rows}", "--reward", "exact", "--samples", "3", "--temperature", "0"],
            "samples is 3 and",
        ),
        (
            ["example", "--data", "{rows}", "--reward", "exact", "--k", "2"],
            "k is 2, expected 1 to the number of samples",
        ),
        (["example", "--data", "{rows}", "--reward", "exact", "--k", "x"], "Flag '--k' is 'x', expected whole numbers"),
        (["example", "--data", "{rows}", "--judge", "{rows}"], "A judge compares two models. Name the second one"),
        (["example", "--learning-rate", "1"], "Unknown option '--learning-rate'"),
        (["example", "--suite", "none.yaml"], "Suites need lm-evaluation-harness"),
    ],
)
def test_mistakes_are_one_line(words, said, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "ab", "answer": "b"}\n')
    assert main(["evaluate", *(word.format(rows=file) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(said), error
    assert "Traceback" not in error


def test_suites_run_through_the_real_harness(tmp_path, folders):
    """Multiple choice in a local task file: the harness' accuracy is that of log-probs taken without it."""
    place = Path(sys.prefix) / "suites"
    if not place.is_dir():
        pytest.skip("lm-evaluation-harness is not installed beside: make setup")
    rows = [{"question": "ab" * (n % 4 + 1), "answer": n % 2} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "letters.yaml").write_text(
        f"task: letters\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: [a, b]\n"
        "doc_to_target: '{{answer}}'\ntarget_delimiter: ''\nmetric_list: [{metric: acc}]\n"
    )
    paths = [str(ROOT / "core"), str(place)]
    words = [sys.executable, "-m", "posttrain", "evaluate", folders[0], "--against", folders[1]]
    words += ["--json", "--device", "cpu", "--cache", "off", "--suite", str(tmp_path / "letters.yaml")]
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout[done.stdout.index("{\n") :])
    for key, folder in (("sets", folders[0]), ("others", folders[1])):
        model = LlamaForCausalLM.from_pretrained(folder)
        right = [
            float(
                _logp(model, row["question"], "ab"[row["answer"]]) > _logp(model, row["question"], "ba"[row["answer"]])
            )
            for row in rows
        ]
        assert said[key]["letters"]["figures"]["acc"]["mean"] == pytest.approx(sum(right) / 8)
    assert said["comparisons"]["letters"]["acc"]["ties"] >= 0


def _logp(model, prompt, letter):
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([tokenizer.encode(prompt + letter, add_special_tokens=False)])
    with torch.no_grad():
        return model(input_ids=ids).logits[0, -2].log_softmax(-1)[ids[0, -1]].item()
