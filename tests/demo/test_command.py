"""The command around the loop; what the loop does stands in the tests of the parts."""

import math

import pytest

from lit_rlhf.cli import main
from lit_rlhf.demo import command
from lit_rlhf.demo.loop import SCALES
from lit_rlhf.demo.report import PERPLEXITY_FALL, Finding
from lit_rlhf.evaluation.bootstrap import Estimate
from lit_rlhf.evaluation.figures import Figure


def figures(fall):
    """Return a report's figures, of which the command reads one."""
    figure = Figure("", "", "", Estimate(fall, math.nan, math.nan, 0), "%")
    return [Finding("another", figure), Finding(PERPLEXITY_FALL, figure)]


FIGURES = figures(fall=0.3)


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Stand in for model, data, loop and report; return what was asked of them."""
    made = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_RLHF_HOME", str(tmp_path / "cache"))

    def write_report(run, findings, folder):
        made.append(("report", run, findings, str(folder)))
        folder.mkdir(parents=True)
        (folder / "report.md").write_text("# All of it\n", encoding="utf-8")
        return folder / "report.md"

    stand_ins = {
        "prepare_model": lambda: made.append(("model",)) or tmp_path / "cache" / "model",
        "write_datasets": lambda folder, seed: made.append(("data", folder, seed)),
        "run_loop": lambda *asked: made.append(("loop", *asked)) or "what ran",
        "read_findings": lambda folder, **full: made.append(("read", str(folder), full)) or FIGURES,
        "write_report": write_report,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(command, name, stand_in)
    return made


def test_help_names_the_options(capsys, calls):
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: lit-rlhf demo")
    for option in ("--smoke", "--full", "--prepare", "--seed", "--output"):
        assert option in shown
    assert calls == []


@pytest.mark.parametrize(
    ("options", "scale", "folder", "seed"),
    [
        ([], "quick", "runs/demo", 1),
        (["--smoke"], "smoke", "runs/demo-smoke", 1),
        (["--full", "--seed", "7"], "full", "runs/demo-full", 7),
        (["--smoke", "--output", "elsewhere/run"], "smoke", "elsewhere/run", 1),
    ],
)
def test_runs_the_loop_and_shows_its_report(tmp_path, capsys, calls, options, scale, folder, seed):
    assert main(["demo", *options]) == 0
    model, data, loop, read, report = calls
    assert model == ("model",)
    assert data == ("data", tmp_path / "cache" / "data", command.DATA_SEED)
    name, asked_scale, asked_folder, asked_seed = loop
    assert (name, asked_scale, str(asked_folder), asked_seed) == (
        "loop",
        SCALES[scale],
        folder,
        seed,
    )
    assert read == ("read", folder, {"is_full": "--full" in options})
    assert report == ("report", "what ran", FIGURES, folder)
    shown = capsys.readouterr().out
    assert "# All of it" in shown
    assert shown.endswith(f"report: {folder}/report.md\n")


@pytest.mark.parametrize("fall", [0.0, -3.0, float("nan")])
def test_a_perplexity_that_does_not_fall_fails_after_the_report(monkeypatch, capsys, calls, fall):
    monkeypatch.setattr(command, "read_findings", lambda *_, **__: figures(fall))
    assert main(["demo", "--smoke"]) == 1
    assert [call[0] for call in calls] == ["model", "data", "loop", "report"]
    assert "did not lower the held-out perplexity" in capsys.readouterr().err


def test_prepare_stops_before_the_loop(tmp_path, capsys, calls):
    assert main(["demo", "--prepare"]) == 0
    assert [call[0] for call in calls] == ["model", "data"]
    shown = capsys.readouterr().out
    assert str(tmp_path / "cache" / "model") in shown
    assert str(tmp_path / "cache" / "data") in shown


@pytest.mark.parametrize(
    "options", [["--smoke", "--full"], ["--prepare", "--smoke"], ["--seed", "one"], ["--quick"]]
)
def test_refuses_options_that_contradict_or_are_unknown(capsys, calls, options):
    with pytest.raises(SystemExit) as ended:
        main(["demo", *options])
    assert ended.value.code == 2
    assert "lit-rlhf demo: error:" in capsys.readouterr().err
    assert calls == []


def test_models_of_another_run_are_for_the_flywheel(capsys, calls):
    assert main(["demo", "--smoke", "--models", "runs/demo"]) == 1
    assert "--models goes with --flywheel" in capsys.readouterr().err
    assert calls == []
