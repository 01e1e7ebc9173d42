"""Another class in a setting starts from its own defaults, in files and on the command line."""

import importlib
from dataclasses import MISSING, fields

import pytest
import yaml

from lit_rlhf.callbacks import KLControl
from lit_rlhf.objectives import PreferenceLoss, SimPO
from lit_rlhf.shipped import configs_folder
from tests.docs.parse_examples import phase_cli

FRAGMENTS = [
    *((file, "dpo", ("loss",)) for file in (configs_folder() / "loss").glob("*.yaml")),
    *((file, "ppo", ("advantage",)) for file in (configs_folder() / "advantage").glob("*.yaml")),
    *(
        (file, "ppo", ("update", "policy_loss"))
        for file in (configs_folder() / "policy_loss").glob("*.yaml")
    ),
    *((file, "reward", ("loss",)) for file in (configs_folder() / "reward_loss").glob("*.yaml")),
]


def parsed(phase, *words):
    """Return the model's settings of a phase's file, the demonstration's, and what follows."""
    files = [
        configs_folder() / f"{phase}.yaml",
        configs_folder() / "demo" / "quick" / f"{phase}.yaml",
    ]
    words = [*(f"--config={file}" for file in files), *words]
    return phase_cli(phase).parser.parse_args(["fit", *words])["fit"].as_dict()["model"]


def class_of(spec):
    module, _, name = spec["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    ("file", "phase", "where"), FRAGMENTS, ids=[file.stem for file, *_ in FRAGMENTS]
)
def test_a_fragment_gives_its_class_the_defaults_that_it_does_not_name(file, phase, where):
    found, named = parsed(phase, f"--config={file}"), yaml.safe_load(file.read_text())["model"]
    for name in where:
        found, named = found[name], named[name]
    assert class_of(found) is class_of(named)
    for field in fields(class_of(found)):
        if field.default is MISSING or field.name in named.get("init_args", {}):
            continue
        value = found.get("init_args", {}).get(field.name, field.default)
        if isinstance(value, dict):  # a part of the part
            assert class_of(value) is type(field.default)
        else:
            assert value == field.default, field.name


def test_what_was_set_for_another_class_is_said_once_and_not_used(caplog):
    alpha = "--model.loss.divergence=AlphaDivergence"
    loss = parsed("dpo", "--model.loss.beta=0.3", alpha, "--model.loss=EXO")["loss"]
    assert loss["init_args"]["beta"] == 0.1
    (told,) = [record.getMessage() for record in caplog.records]
    assert "EXO takes the place of DPO" in told
    assert "beta: 0.3, divergence: AlphaDivergence of DPO is not used" in told


def test_what_is_set_behind_or_with_another_class_is_used_and_nothing_said(caplog, tmp_path):
    loss = parsed("dpo", "--model.loss=IPO", "--model.loss.beta=0.3")["loss"]
    assert (loss["init_args"]["beta"], loss["init_args"]["per_token"]) == (0.3, True)
    again = parsed("dpo", "--model.loss.beta=0.4", "--model.loss=lit_rlhf.objectives.DPO")
    assert again["loss"]["init_args"]["beta"] == 0.4
    file = tmp_path / "simpo.yaml"
    file.write_text("model: {loss: {class_path: SimPO, init_args: {beta: 3.0}}}")
    simpo = parsed("dpo", "--model.loss.beta=0.5", f"--config={file}")["loss"]
    assert simpo["init_args"]["beta"] == 3.0
    assert not caplog.records


def make_loss(beta: float = 0.2) -> PreferenceLoss:
    return SimPO(beta)


def test_what_a_function_makes_starts_anew_too():
    here = f"{__name__}.make_loss"
    assert parsed("dpo", f"--model.loss={here}")["loss"]["init_args"]["beta"] == 0.2
    back = parsed("dpo", f"--model.loss={here}", "--model.loss.beta=7", "--model.loss=SimPO")
    assert back["loss"]["init_args"]["beta"] == 2.0


class Loose(SimPO):
    """A loss whose arguments its signature does not name."""

    def __init__(self, **options):
        super().__init__()


@pytest.mark.parametrize("name", ["SimPO", "EXO"])
def test_arguments_without_a_name_in_the_signature_stay_with_their_class(tmp_path, name):
    loose, other = tmp_path / "loose.yaml", tmp_path / "other.yaml"
    loose.write_text(f"model: {{loss: {{class_path: {__name__}.Loose, dict_kwargs: {{a: 1}}}}}}")
    other.write_text(f"model: {{loss: {{class_path: {name}}}}}")
    assert parsed("dpo", f"--config={loose}")["loss"]["dict_kwargs"] == {"a": 1}
    for words in ([f"--config={other}"], [f"--model.loss={name}"]):
        assert "dict_kwargs" not in parsed("dpo", f"--config={loose}", *words)["loss"]


def test_another_logger_keeps_name_and_folder():
    words = ["--trainer.logger.init_args.name=mine", "--trainer.logger=CSVLogger"]
    file = configs_folder() / "dpo.yaml"
    options = phase_cli("dpo").parser.parse_args(["fit", f"--config={file}", *words])
    settings = options["fit"].as_dict()["trainer"]["logger"]["init_args"]
    assert (settings["name"], settings["save_dir"]) == ("mine", "runs")


def test_dapo_has_no_kl_to_control_whatever_an_earlier_file_says():
    files = ("ppo.yaml", "demo/quick/ppo.yaml", "advantage/dapo.yaml")
    words = ["fit", *(f"--config={configs_folder() / file}" for file in files)]
    options = phase_cli("ppo").parser.parse_args(words)["fit"].as_dict()
    assert options["model"]["kl_penalty"] is None
    assert KLControl(**options["kl"]).controller == KLControl().controller
