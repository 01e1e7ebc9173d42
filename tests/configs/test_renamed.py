"""Every setting that had another name is refused with what to write now."""

from pathlib import Path

import pytest
from jsonargparse import ArgumentError

from lit_rlhf import config_messages
from lit_rlhf.cli import PHASES
from lit_rlhf.config_messages import explain
from lit_rlhf.renamed import GONE, RENAMED, new_name
from tests.docs.parse_examples import phase_cli

CONFIGS = Path(__file__).parents[2] / "configs"


def options_of(phase):
    return phase_cli(phase).options()


def complaint(phase, words):
    """Return what the command says of words that its parser refuses."""
    with pytest.raises(ArgumentError) as caught:
        phase_cli(phase).parser.parse_args(["fit", *words])
    return explain(str(caught.value), options_of(phase), words)


@pytest.mark.parametrize("old", [name for name in {**RENAMED, **GONE} if not name[0].isupper()])
def test_an_old_option_is_told_its_new_name(old, tmp_path):
    phases = [phase for phase in PHASES if old not in options_of(phase)]
    assert phases, f"{old} is still there"
    now = RENAMED.get(old) or GONE[old]
    phase = next((one for one in phases if now in options_of(one)), phases[0])
    assert old not in RENAMED or now in options_of(phase)
    assert now in complaint(phase, [f"--{old}=1"])
    group, _, last = old.rpartition(".")
    file = tmp_path / "old.yaml"
    file.write_text(f"{group}: {{{last}: 1}}" if group else f"{last}: {{some: 1}}")
    message = complaint(
        phase, [f"--config={CONFIGS / phase.replace('-', '_')}.yaml", f"--config={file}"]
    )
    assert now in message
    assert message.startswith(f"{file}:1: ")


@pytest.mark.parametrize("old", [name for name in {**RENAMED, **GONE} if name[0].isupper()])
def test_an_old_class_is_told_its_new_name(old):
    now = RENAMED.get(old) or GONE[old]
    file_says = f"Expected a dot import path string: {old}"
    if "." in old:  # an argument of a class
        name, _, argument = old.partition(".")
        home = f"lit_rlhf.modules.{name}"
        file_says = (
            f"Problem with given class_path '{home}':\n  Option '{argument}' is not accepted"
        )
    assert now in explain(file_says, [], ["fit"])
    assert old not in config_messages._class_names()


def test_a_group_covers_what_is_under_it(monkeypatch):
    monkeypatch.setitem(RENAMED, "model.old", "model.new")
    assert new_name("model.old.rank") == (
        "; 'model.old' is now called 'model.new': write 'model.new.rank'"
    )
    assert new_name("model.older") is None
