"""Without an extra: one message that names it, or a run without pictures that says so once."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from lit_rlhf.cli import main
from lit_rlhf.errors import ConfigError
from lit_rlhf.evaluation.bootstrap import Estimate
from lit_rlhf.evaluation.endpoint import Endpoint
from lit_rlhf.evaluation.figures import Figure
from lit_rlhf.evaluation.pictures import draw_best_of_n, draw_reliability
from lit_rlhf.evaluation.policies import BEST_OF_N
from lit_rlhf.extras import EXTRAS, can_draw, require_extra


@pytest.fixture
def without(monkeypatch):
    """Make a package be missing for the import system."""
    can_draw.cache_clear()
    yield lambda name: monkeypatch.setitem(sys.modules, name, None)
    can_draw.cache_clear()


def test_the_demonstration_names_its_extra(without, capsys):
    without("gguf")
    assert main(["demo", "--smoke"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        'lit-rlhf: error: lit-rlhf demo needs gguf: pip install "lit-rlhf[demo]"'
    ]


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_is_that_of_the_package(without, extra):
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    lines = project["optional-dependencies"][extra]
    named = [re.split(r"[\[>]", line)[0].removesuffix("-py").replace("-", "_") for line in lines]
    assert named == list(EXTRAS[extra])
    without(named[0])
    with pytest.raises(ConfigError, match=rf"^this needs {named[0]}: .*lit-rlhf\[{extra}\]"):
        require_extra(extra, "this")


def test_a_judge_behind_an_endpoint_names_its_extra(without):
    without("openai")
    with pytest.raises(ConfigError, match=r'needs openai: pip install "lit-rlhf\[endpoint\]"'):
        Endpoint("http://127.0.0.1:8000/v1", "judge")


def test_pictures_are_left_out_and_said_once(without, tmp_path):
    without("matplotlib")
    curve = Figure(BEST_OF_N, "policy", "best_of_2", Estimate(1.0, 0.5, 1.5, 8))
    with pytest.warns(UserWarning, match="no pictures are drawn: matplotlib"):
        assert not draw_best_of_n([curve], tmp_path / "one.png")
    assert not draw_reliability({}, tmp_path / "two.png")  # without a second warning
    assert not list(tmp_path.iterdir())
