"""The benchmarks' arithmetic, and that the pages show the figures that were measured."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the benchmarks are no package that is installed

from benchmarks import gpu_peers, growth, tables  # noqa: E402  (found through the line above)
from benchmarks.bench import cases, figures, lengths, processes, techniques  # noqa: E402

IDS = [[[1, 2, 3]], [[1], [2, 2]], [[5] * 10]]
"""Three rows of 3, 3 and 10 tokens; the second has two sequences."""


def found(losses, seconds=(2.0, 2.0), peak=1000.0, ids=IDS):
    return {"losses": list(losses), "seconds": list(seconds), "peak_mb": peak, "ready": 5.0, "ids": ids}


def small(**changes):
    return cases.Case("sft", "SFT", "sft", 2, 2, **changes)


def test_real_tokens_are_counted_row_by_row_and_begin_anew_after_the_last():
    assert figures.real_tokens(IDS, rows=2, steps=2) == [6, 13]  # rows 1 and 2, then 3 and 1


def test_speed_is_all_tokens_over_all_seconds():
    assert figures.figures(small(), found([1, 1]))["tokens_per_second"] == 19 / 4


def test_steps_per_hour_and_what_is_not_generation():
    case = cases.CASES["grpo"]
    taken = found([0, 0], (30.0, 50.0)) | {"generation": [10.0, 20.0], "completion_length": [40.0, 60.0]}
    numbers = figures.figures(case, taken)
    assert numbers["steps_per_hour"] == 90
    assert (numbers["generation_seconds"], numbers["rest_seconds"]) == (15, 25)


def test_claims_are_compared_with_the_medians():
    case = small(speed=3.5, memory=0.35)
    ours = [found([1, 2], (1, 1), 300), found([1, 2], (1, 1), 340), found([1, 2], (9, 9), 900)]
    theirs = [found([1, 2], (4, 4), 1000)] * 3
    result = figures.summary(case, {"posttrain": ours, "trl": theirs})
    assert result["ratios"]["tokens_per_second"] == pytest.approx(4)
    assert result["ratios"]["peak_mb"] == pytest.approx(0.34)
    assert result["missed"] == []
    slow = [found([1, 2.01], (2, 2), 500)] * 3
    missed = figures.summary(case, {"posttrain": slow, "trl": theirs})["missed"]
    assert [line.split()[0] for line in missed] == ["speed", "peak", "losses"]


@pytest.mark.parametrize("losses", [[1.0, float("nan")], [float("inf"), 2.0]])
def test_a_loss_that_is_no_number_is_a_difference(losses):
    runs = {"posttrain": [found(losses)], "trl": [found([1, 2])]}
    assert "losses differ by more than 0.001" in figures.summary(small(), runs)["missed"]


def test_other_rows_are_noticed():
    other = [[[1, 2, 4]], *IDS[1:]]
    runs = {"posttrain": [found([1, 2])], "trl": [found([1, 2], ids=other)]}
    assert figures.summary(small(), runs)["missed"] == ["the token ids of the rows differ"]


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_techniques_end_with_the_defaults(name):
    rows = techniques.variants(name)
    assert rows[-2].settings == {}
    assert rows[-1].settings == {"bfloat16_gradients": True}  # the one that changes a gradient, and is asked for
    assert rows[-1].share
    assert rows[-2].share
    assert not rows[0].share
    assert len({row.title for row in rows}) == len(rows)


def test_lengths_have_a_long_tail():
    drawn = sorted(lengths.lengths())
    assert len(drawn) == lengths.ROWS
    middle = drawn[len(drawn) // 2]
    assert 0.5 * lengths.MEDIAN < middle < 2 * lengths.MEDIAN
    assert drawn[-1] > 3 * middle


def test_work_travels_whole(tmp_path):
    work = cases.Work("sft", "rows", "model", 3, "result.json", {"packing": False}, share=False)
    work.write(tmp_path / "work.json")
    assert cases.Work.read(str(tmp_path / "work.json")) == work


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="no place for the figures"):
        tables.page("text", [], short=False)


def test_spread_shows_one_number_where_there_is_one():
    assert tables._spread({"min": 2.0, "median": 2.0, "max": 2.0}, "tokens_per_second") == "2.0"
    assert tables._spread({"min": 1.0, "median": 2.0, "max": 3.0}, "tokens_per_second") == "2.0 (1.0 to 3.0)"
    kibi = 1024**3 / 1e9 / 1024  # a mebibyte in gigabytes
    assert tables._spread(dict.fromkeys(("min", "median", "max"), 1024.0), "peak_mb") == f"{1024 * kibi:.2f}"


def test_tables_show_both_sides_the_ratio_and_the_losses():
    ours, theirs = found([1.0, 2.0], (1, 1), 300), found([1.0, 2.002], (4, 4), 1000)
    case = figures.summary(small(), {"posttrain": [ours], "trl": [theirs]})
    versions = {"posttrain": "0.1.0", "trl": "1.16.0", "torch": "2.13.0", "transformers": "5.19.0"}
    facts = {"machine": {"processor": "P", "cores": 2}, "threads": 2}
    facts["versions"] = {"posttrain": versions, "trl": versions}
    text = tables.render({"facts": facts, "results": {"side_by_side": {"sft": case}}}, losses=True)
    assert "| SFT; steps: 2, repeats: 1 | real tokens a second | 9.5 | 2.4 | 4.00 |" in text
    assert "|  | peak memory, GB | 0.31 | 1.05 | 0.30 |" in text
    assert "| 2 | 2.000000 | 2.002000 | 1.0e-03 |" in text


def test_a_processor_is_named_with_its_units_for_bfloat16(tmp_path):
    def named(flags):
        file = tmp_path / "cpuinfo"
        file.write_text(
            f"processor : 0\nmodel name\t: P 1\nflags\t\t: fpu {flags}\n\nprocessor : 1\nmodel name : P 1\n"
        )
        return processes.processor(file)

    assert named("avx2") == "P 1"
    assert named("avx512_bf16 avx2") == "P 1 with AVX512-BF16"
    assert named("avx512_bf16 amx_bf16") == "P 1 with AMX"


def test_the_newest_version_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name, version in (("a", "0.9.0"), ("b", "0.10.0")):
        facts = {"versions": {"posttrain": {"posttrain": version}}, "machine": {"processor": name}}
        (tmp_path / f"bench-{name}.json").write_text(json.dumps({"facts": facts}))
    assert [one["facts"]["machine"]["processor"] for one in tables.results()] == ["b", "a"]


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_pages_are_in_step_with_the_figures(path):
    text = path.read_text(encoding="utf-8")
    assert tables.page(text, tables.results(), short=path.parent.name != "docs") == text, (
        "run: python -m benchmarks.tables"
    )


def test_the_page_on_watching_has_the_measured_shares():
    results = json.loads((ROOT / "benchmarks" / "results" / "watching.json").read_text())
    page = (ROOT / "docs" / "watching.md").read_text()
    for row, name in zip(results["rows"], ("none", "TensorBoard", "Trackio"), strict=True):
        (line,) = [text for text in page.splitlines() if text.startswith(f"| {name} |")]
        shares = [100 * row[f"{part}_share"] for part in ("rules", "progress", "report", "trackers")]
        found = [float(number) for number in re.findall(r"([\d.]+) %", line)]
        assert found == [round(share, 2) for share in shares if share] + [round(100 * row["share"], 1)]
        assert row["share"] < 0.02


def test_the_pages_on_long_rows_have_the_measured_figures():
    results = json.loads((ROOT / "benchmarks" / "results" / "long_rows.json").read_text())
    page = (ROOT / "docs" / "strategies.md").read_text()
    for row in results["context"]:
        (line,) = [text for text in page.splitlines() if re.match(rf"\| {row['processes']}[ ,].*\| 2\.55", text)]
        peaks = ", ".join(f"{peak:.0f}" for peak in row["peaks_mb"])
        assert line.endswith(f"| {row['losses'][0]:.6f} | {row['losses'][1]:.6f} | {peaks} |")
    assert max(results["context"][-1]["peaks_mb"]) < 0.3 * results["context"][0]["peaks_mb"][0]
    page = (ROOT / "docs" / "memory-and-speed.md").read_text()
    for row in results["head"]:
        numbers = [f"{row[name]:,.0f}" for name in ("peak_mb", "gradients_mb", "one_copy_of_full_logits_mb")]
        assert f"| {row['tokens']:,} | {' | '.join(numbers)} |" in page
        assert row["peak_mb"] - row["gradients_mb"] < 64  # what the chunks take, whatever the length


@pytest.mark.parametrize(
    ("shape", "parameters", "unmultiplied"),
    [
        ("8b", 8_030_261_248, 525_336_576 + 65 * 4096),  # Llama 3 8B; its embedding is read, its norms are not products
        ("1b", 1_235_814_400, 33 * 2048),  # Llama 3.2 1B, whose head is its embedding
    ],
)
def test_operations_of_known_models(shape, parameters, unmultiplied):
    assert gpu_peers.operations(shape, "full", 0) == 6 * (parameters - unmultiplied)
    assert gpu_peers.operations(shape, "lora", 0) == 4 * (parameters - unmultiplied)
    # one more token of length: half of it is seen, by queries and by what they weigh, 2 * 3 operations each
    more = gpu_peers.operations(shape, "full", 1) - gpu_peers.operations(shape, "full", 0)
    assert more == 6 * {"8b": 32 * 4096, "1b": 16 * 2048}[shape]


def test_the_share_of_the_chip_is_by_hand():
    given = {"work": "sft", "shape": "1b", "way": "full"}
    found = {"ends": [1.0, 3.0, 4.0, 5.0], "tokens": [9.0, 9.0, 1000.0, 3000.0], "memory_gb": 1.234, "losses": [1.0]}
    kept = gpu_peers.figures(found, given, peak=100.0)
    assert kept["tokens_per_second"] == 2000.0
    assert kept["share_of_arithmetic"] == pytest.approx(
        2000 * gpu_peers.operations("1b", "full", 1024) / 1e14, abs=5e-4
    )
    given["work"] = "grpo"
    assert gpu_peers.figures(found, given, None)["completions_per_second"] == 32.0


def test_the_page_on_memory_has_what_a_million_rows_took():
    found = json.loads((ROOT / "benchmarks" / "results" / "data_preparation.json").read_text())["memory"]
    page = " ".join((ROOT / "docs" / "memory-and-speed.md").read_text().split())
    mapped = found["resident"] - found["anonymous"]
    assert found["rows"] == 10**6
    assert f"a file of {found['file_mb']} MB and {found['tokens'] / 1e6:.0f} million tokens" in page
    assert f"at most {found['resident']} MB resident in the process, {mapped} of them mapped files" in page
    assert f"The tokens are {found['arrays_on_disk']} MB in the cache" in page


def test_the_exponent_of_a_square_is_two():
    points = [{"size": size, "seconds": 3.0 * size**2} for size in (1, 2, 4, 8)]
    assert growth.exponent(points, "seconds") == pytest.approx(2)
    points[0]["seconds"] = 99.0  # the first point is not among the last three
    assert growth.exponent(points, "seconds") == pytest.approx(2)


def test_the_page_on_growth_is_written_from_what_was_measured():
    found = json.loads(growth.RESULT.read_text())
    assert growth.PAGE.read_text() == growth.render(found)
    assert list(found["axes"]) == list(growth.AXES)
