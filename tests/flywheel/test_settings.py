"""Settings that no run could honour are refused before it begins, by their names."""

import pytest

from lit_rlhf.errors import ConfigError
from lit_rlhf.flywheel.labelers import SimulatedRaters
from lit_rlhf.flywheel.settings import (
    FlywheelSettings,
    GateConfig,
    PhaseConfig,
    RefreshConfig,
    SamplesConfig,
    read_settings,
)

GATE = GateConfig("reward:gate")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        # Its evaluation would take the final judge for the gate's.
        (lambda: GateConfig("a", {"gate": "b"}), "gate.final_judges.gate: choose another name"),
        (lambda: GateConfig("a", {"reward": "b"}), "gate.final_judges.reward: choose another"),
        (lambda: GateConfig("a", {"v1.0": "b"}), "gate.final_judges.v1.0: choose another name"),
        (lambda: GateConfig("a", {"last": "reward:a/"}), "gate.final_judges.last: is gate.judge"),
        (lambda: GateConfig("endpoint:http://x/v1#m"), "gate.judge endpoint:.*only compares"),
        (lambda: GateConfig("a", {"l": "endpoint:x#m"}), "gate.final_judges.l endpoint.*compares"),
        (lambda: GateConfig("a", perplexity_rows=0), "gate.perplexity_rows is 0"),
        (lambda: SamplesConfig(temperature=0), "samples.temperature is 0; it must be above 0"),
        (lambda: SamplesConfig(max_new_tokens=0), "samples.max_new_tokens is 0"),
        (
            lambda: FlywheelSettings("s", "p", "h", GATE, labeler=SimulatedRaters("gate", "r")),
            "gate.judge is labeler.gold",
        ),
        (
            lambda: FlywheelSettings(
                *("s", "p", "h", GATE),
                policy=PhaseConfig("ppo", [], start="continue"),
                refresh=RefreshConfig("b", "d"),
            ),
            "leaves what refresh fine-tunes unused",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_options_of_a_phase_are_values_of_yaml():
    options = {"a": None, "b": True, "c": [1, "x"], "d": {"e": None}, "f": 1e-5, "g": "text"}
    assert PhaseConfig("ppo", [], options).words() == [
        *("--a=null", "--b=true", '--c=[1, "x"]', '--d={"e": null}', "--f=1e-05", "--g=text")
    ]


def test_what_a_part_refuses_is_told(tmp_path):
    path = tmp_path / "flywheel.yaml"
    path.write_text(
        "{sft: s, prompts: p, held_out: h, gate: {judge: g}, early_stop: {accuracy: 1}}"
    )
    with pytest.raises(ConfigError, match=r"^early_stop: posterior 0.95 and accuracy 1.0 must be"):
        read_settings(["--config", str(path)], "test")
