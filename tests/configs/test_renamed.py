"""Every setting that had another name is refused with what to write now."""

import re
from pathlib import Path

import pytest
from jsonargparse import ArgumentError

from lit_rlhf import config_messages
from lit_rlhf.cli import PHASES
from lit_rlhf.config_messages import explain
from lit_rlhf.renamed import NEW_NAMES, new_name
from tests.docs.parse_examples import phase_cli

CONFIGS = Path(__file__).parents[2] / "configs"


def options_of(phase):
    return phase_cli(phase).options()


def complaint(phase, words):
    """Return what the command says of words that its parser refuses."""
    with pytest.raises(ArgumentError) as caught:
        phase_cli(phase).parser.parse_args(["fit", *words])
    return explain(str(caught.value), options_of(phase), words)


@pytest.mark.parametrize("old", [name for name in NEW_NAMES if not name[0].isupper()])
def test_an_old_option_is_told_its_new_name(old, tmp_path):
    phases = [phase for phase in PHASES if old not in options_of(phase)]
    assert phases, f"{old} is still there"
    now = NEW_NAMES[old]
    # A loss has its own settings, which are options once it is chosen.
    named = [name for name in re.findall(r"[a-z]+\.[\w.]+", now) if "loss." not in name]
    fitting = [phase for phase in phases if set(named) <= set(options_of(phase))]
    assert fitting, f"no phase has all of {named}"
    phase = fitting[0]
    assert now in complaint(phase, [f"--{old}=1"])
    group, _, last = old.rpartition(".")
    file = tmp_path / "old.yaml"
    file.write_text(f"{group}: {{{last}: 1}}")
    message = complaint(
        phase, [f"--config={CONFIGS / phase.replace('-', '_')}.yaml", f"--config={file}"]
    )
    assert now in message
    assert message.startswith(f"{file}:1: ")


def test_an_old_class_is_told_its_new_name():
    old = "AdaptiveKLCallback"
    assert NEW_NAMES[old] in explain(f"Expected a dot import path string: {old}", [], ["fit"])
    assert old not in config_messages._class_names()


def test_an_argument_of_a_class_and_what_is_under_a_group_are_told(monkeypatch):
    monkeypatch.setitem(NEW_NAMES, "Old.argument", "write another")
    message = "Problem with given class_path 'home.Old':\n  Option 'argument' is not accepted"
    assert "write another" in explain(message, [], ["fit"])
    monkeypatch.setitem(NEW_NAMES, "model.old", "set model.new")
    expected = "; 'model.old' has another name now: set model.new"
    assert new_name("model.old.rank") == expected
    assert new_name("model.older") is None
