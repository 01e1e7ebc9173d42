"""`--model` and `--data` name classes of one's own, on the command line and in files."""

import pytest
import yaml

from lit_rlhf.errors import ConfigError
from lit_rlhf.own_classes import find_classes

OWN = """
from lightning.pytorch import LightningDataModule
from lit_rlhf import SFTDataModule, SFTModule

class OwnSFT(SFTModule):
    def __init__(self, *, extra: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.extra = extra

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * self.extra

class OwnData(SFTDataModule):
    def __init__(self, tokenizer: str, *, prefix: str = "", **kwargs):
        super().__init__(tokenizer, **kwargs)
        self.prefix = prefix

class PlainData(LightningDataModule):
    def __init__(self, path: str):
        super().__init__()
        self.path = path
"""


@pytest.fixture
def own(workplace):
    (workplace.folder / "own_classes_of_a_test.py").write_text(OWN)
    return "own_classes_of_a_test"


def test_classes_on_the_command_line_and_again_from_the_saved_file(workplace, own):
    words = [f"--model={own}.OwnSFT", "--model.extra=0.5", f"--data={own}.py:OwnData"]
    cli = workplace.fit("sft", options=[*words, "--data.prefix=x"])
    assert (type(cli.model).__name__, cli.model.extra) == ("OwnSFT", 0.5)
    assert (type(cli.datamodule).__name__, cli.datamodule.prefix) == ("OwnData", "x")
    assert cli.datamodule.tokenizer_source == cli.model.source
    assert cli.trainer.global_step == 2
    saved = workplace.folder / "runs" / "sft" / "config.yaml"
    settings = yaml.safe_load(saved.read_text())
    assert settings["model"]["class_path"] == f"{own}.OwnSFT"
    assert cli.model.run_config["data"]["class_path"] == f"{own}.py:OwnData"
    copy = workplace.folder / "again.yaml"
    copy.write_text(saved.read_text())
    again = workplace.fit("sft", options=[f"--config={copy}"])
    assert (type(again.model).__name__, again.model.extra) == ("OwnSFT", 0.5)
    assert type(again.datamodule).__name__ == "OwnData"


def test_the_command_line_wins_over_files_and_later_files_over_earlier(tmp_path):
    files = []
    for name in ("a", "b"):
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(f"model: {{class_path: my.{name.upper()}, policy: x}}")
    words = [f"--config={file}" for file in files]
    assert find_classes(words)[0] == {"model": "my.B"}
    paths, arguments = find_classes([*words, "--model", "my.C", "--model.policy", "y"])
    assert paths == {"model": "my.C"}
    assert arguments == [*words, "--model.class_path=my.C", "--model.policy", "y"]


def test_a_file_of_settings_is_no_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.Model").write_text("policy: x")
    words = ["--model", "model.yaml", "--data=my.Model", "--model.policy", "owner/name.v2"]
    assert find_classes(words) == ({}, words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model=own_classes_of_a_test.OwnData"], "model: .*no subclass of SFTModule"),
        (["--model=lit_rlhf.DPOModule"], "model: .*no subclass of SFTModule"),
        (["--data=lit_rlhf.SFTModule"], "data: .*no subclass of LightningDataModule"),
        (["--model=nowhere.Own"], r"class 'nowhere.Own' cannot be imported .*give --model"),
        (["--model=own_classes_of_a_test.None"], "has no attribute 'None'"),
        (["--model=own_classes_of_a_test.OwnSFT", "--model.extar=2"], "did you mean 'model.extra'"),
        (["--data=own_classes_of_a_test.PlainData"], "data.batch_size"),
    ],
)
def test_what_is_no_class_of_the_phase_is_refused(workplace, own, words, expected):
    with pytest.raises(ConfigError, match=expected):
        workplace.fit("sft", options=words)


def test_init_args_are_written_beside_the_class(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("model: {class_path: my.A, init_args: {policy: x}}")
    with pytest.raises(ConfigError, match=r"own.yaml: model: .*without init_args"):
        find_classes(["--config", str(file)])
