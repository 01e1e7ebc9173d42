import dataclasses
import json
import math
import re

import pytest

from lit_rlhf.demo.report import write_report
from lit_rlhf.demo.report_schema import (
    CalibrationBin,
    Curve,
    Figure,
    Match,
    Phase,
    PPOCurves,
    Report,
    Sample,
    SampleResponse,
    Standing,
    parse_report,
)
from lit_rlhf.errors import DataError

EVERY = tuple(range(1, 21))


def curve(start, step, iterations=EVERY):
    return Curve(iterations, tuple(start + step * iteration for iteration in iterations))


REPORT = Report(
    title="The loop on movie reviews",
    figures=(
        Figure("gain", 0.91, "standard deviations", "at least 0.8", True, (0.7, 1.1), 256),
        Figure("fall", 20.0, "%", "at least 25 %", False),
        Figure("plain", 1 / 3),
    ),
    curves=PPOCurves(
        reward=curve(0, 0.1),
        validation_reward=curve(0, 0.08, (1, 10, 20)),
        vader=curve(0.1, 0.02),
        kl=curve(0, 0.4),
        kl_coefficient=curve(0.05, 0.002),
        kl_target=6.0,
    ),
    calibration=tuple(CalibrationBin(p / 10, p / 12, 10.0 * p) for p in range(10)),
    samples=(
        Sample(
            "Movie review: A | B",
            (
                SampleResponse("SFT", " plain\ntext", {"VADER": 0.1}),
                SampleResponse("PPO", "", {"VADER": 0.9, "validation reward": 1.5}),
                SampleResponse("DPO", " <b>*bold*</b> `code` [x](y) $1$", {"VADER": math.nan}),
            ),
        ),
    ),
    phases=(Phase("SFT", 60.2, 3.456), Phase("PPO", 299.8, 2.9)),
    precision="bf16-mixed",
    seed=17,
    commands=("lit-rlhf sft fit --config configs/sft.yaml", "lit-rlhf ppo fit"),
    versions={"torch": "2.13.0", "lightning": "2.6.6"},
    notes=("The fall is short: too few steps.",),
    standings=(
        Standing("SFT", 0.0, -0.1, (Match("PPO", 0.25, (0.2, 0.3), 256),)),
        Standing("PPO", 5.4321, 1.25, (Match("SFT", 0.75, (0.7, 0.8), 256),)),
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    assert write_report(REPORT, folder) == folder / "report.md"
    return folder


def test_json_holds_everything_and_reads_back(folder):
    text = (folder / "report.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    data = json.loads(text)
    assert data["seed"] == 17
    assert data["figures"][0]["interval"] == [0.7, 1.1]
    assert data["samples"][0]["responses"][2]["scores"]["VADER"] is None
    again = parse_report(data)
    assert dataclasses.replace(again, samples=()) == dataclasses.replace(REPORT, samples=())


def table_with(text, header):
    """Return the rows of the table that starts with `header`, as lists of cells."""
    lines = text[text.index(header) :].split("\n\n")[0].splitlines()
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]


def test_figures_stand_with_interval_target_and_verdict(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in row] for row in table_with(text, "| figure |")]
    assert rows[0] == ["figure", "value", "95 % interval", "n", "target", "met"]
    assert rows[2:] == [
        ["gain", "0.91 standard deviations", "0.7 to 1.1", "256", "at least 0.8", "yes"],
        ["fall", "20 %", "", "", "at least 25 %", "**no**"],
        ["plain", "0.3333", "", "", "", ""],
    ]
    assert "1 of 2 targets met. Seed 17, 6.0 minutes, 3.46 GiB" in text
    assert "The fall is short" in text


def test_standings_are_a_table_of_all_against_all(folder, tmp_path):
    text = (folder / "report.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in row] for row in table_with(text, "| policy | KL")]
    assert rows[0][3:] == ["against SFT", "against PPO"]
    assert rows[2:] == [
        ["SFT", "0.00", "-0.1", "", "25 % (20 to 30; 256)"],
        ["PPO", "5.43", "1.25", "75 % (70 to 80; 256)", ""],
    ]
    without = write_report(dataclasses.replace(REPORT, standings=()), tmp_path)
    assert "Who is ahead" not in without.read_text(encoding="utf-8")


def test_samples_cannot_break_the_table(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    rows = table_with(text, "| prompt |")
    assert {len(row) for row in rows} == {5}
    cells = [[cell.strip() for cell in row] for row in rows[2:]]
    assert cells[0] == ["Movie review: A \\| B", "SFT", "plain<br>text", "0.1", "–"]  # noqa: RUF001
    assert cells[1] == ["", "PPO", "(nothing)", "0.9", "1.5"]
    assert cells[2][2] == ("&lt;b&gt;\\*bold\\*&lt;/b&gt; \\`code\\` \\[x\\](y) \\$1\\$")


def test_run_is_described(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    for part in (*REPORT.commands, "| SFT | 60 |", "| torch | 2.13.0 |"):
        assert part in text


def test_pictures_are_there_and_named_by_relative_path(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    names = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert names == ["ppo.png", "kl_coefficient.png", "calibration.png"]
    for name in names:
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5000
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*names, "report.md", "report.json"]
    )


def test_the_picture_of_the_monitor_is_shown_where_the_run_left_one(tmp_path):
    picture = tmp_path / "ppo" / "overoptimization" / "curves.png"
    picture.parent.mkdir(parents=True)
    picture.touch()
    text = write_report(REPORT, tmp_path).read_text(encoding="utf-8")
    assert "](ppo/overoptimization/curves.png)" in text


def test_plain_data_give_the_same_files(folder, tmp_path):
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    data["samples"][0]["responses"][2]["scores"]["VADER"] = math.nan
    write_report(data, tmp_path)
    for name in ("report.md", "report.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_short_run_without_measured_values_is_written(tmp_path):
    nothing = Curve((), ())
    report = dataclasses.replace(
        REPORT,
        figures=(Figure("gain", math.nan, target="at least 1", met=False),),
        curves=PPOCurves(curve(0, 1, (1,)), nothing, nothing, nothing, nothing, None),
        calibration=(CalibrationBin(math.nan, math.nan, 0.0),),
        samples=(),
    )
    text = write_report(report, tmp_path).read_text(encoding="utf-8")
    assert "| gain | – |" in text  # noqa: RUF001
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert data["figures"][0]["value"] is None
    assert math.isnan(parse_report(data).figures[0].value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("curves"), "curves"),
        (lambda data: data.update(colour="red"), "colour"),
        (lambda data: data["figures"][0].update(units="m"), "units"),
        (lambda data: data["curves"].pop("kl"), "kl"),
    ],
)
def test_data_that_do_not_fit_are_named(change, message):
    data = dataclasses.asdict(REPORT)
    change(data)
    with pytest.raises(DataError, match=message):
        parse_report(data)
