import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlhf.data import DPODataModule, PPODataModule, RewardDataModule, SFTDataModule
from lit_rlhf.errors import CheckpointError, ConfigError, DataError

MODULES = [DPODataModule, PPODataModule, RewardDataModule, SFTDataModule]
SHARED = {
    "template_options",
    "thinking", "format", "bad_rows", "predict",
    "tokenizer", "train", "validation", "test", "template", "columns", "batch_size",
    "eval_batch_size", "eval_batch_tokens", "seed", "limit_train",
    "limit_validation", "overlong",
    "id_field", "last_batch", "num_proc", "streaming",
}  # fmt: skip
# Lightning's own calls, which we cannot change.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no"),
]


@pytest.fixture
def rows(write_rows):
    """Ten demonstrations, each known by the length of its response."""
    return write_rows("x.jsonl", [{"prompt": "", "response": "yes " * n} for n in range(1, 11)])


def test_what_an_epoch_leaves_out_is_said(rows, word_folder, caplog):
    with caplog.at_level("INFO"):
        fit(SFTDataModule(word_folder, train=rows, batch_size=4), max_epochs=1)
    assert "2 of 10 training examples do not fill a batch of 4" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        seen = fit(
            SFTDataModule(word_folder, train=rows, batch_size=4, last_batch="keep"), max_epochs=1
        )
    assert "fill a batch" not in caplog.text
    assert sorted(map(len, seen)) == [2, 4, 4]


class Recorder(LightningModule):
    """Keeps the lengths of the rows that it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append(batch.lengths.tolist())
        return self.weight * batch.num_response_tokens

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, ckpt_path=None, **options):
    module = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module.seen


class SaveAtEveryMoment(Callback):
    """Writes a checkpoint after each batch and at the end of each epoch."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}-batch.ckpt")

    def on_train_epoch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}-epoch.ckpt")


@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 9}])
@pytest.mark.parametrize("has_validation", [True, False])
def test_a_run_resumed_from_any_checkpoint_sees_what_an_uninterrupted_one_sees(
    word_folder, rows, tmp_path, limits, has_validation
):
    def data():
        validation = rows if has_validation else None
        return SFTDataModule(word_folder, train=rows, validation=validation, batch_size=3, seed=5)

    whole = fit(data(), callbacks=[SaveAtEveryMoment(tmp_path)], **limits)
    assert len(whole) == 9
    assert len({tuple(map(tuple, whole[i : i + 3])) for i in (0, 3, 6)}) == 3
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == 12
    for checkpoint in checkpoints:
        num_seen = int(checkpoint.name.partition("-")[0])
        rest = fit(data(), ckpt_path=checkpoint, **limits)
        assert whole[:num_seen] + rest == whole, checkpoint.name


class SaveAtTheEnd(Callback):
    """Writes a checkpoint when training ends."""

    def __init__(self, file):
        self.file = file

    def on_train_end(self, trainer, _):
        trainer.save_checkpoint(self.file)


def test_a_run_of_few_steps_goes_on_for_more(word_folder, rows, tmp_path):
    def data():
        return SFTDataModule(word_folder, train=rows, batch_size=3)

    whole = fit(data(), max_epochs=-1, max_steps=9)
    end = tmp_path / "end.ckpt"
    first = fit(data(), callbacks=[SaveAtTheEnd(end)], max_epochs=-1, max_steps=4)
    rest = fit(data(), ckpt_path=end, max_epochs=-1, max_steps=9)
    assert first + rest == whole


def test_a_second_fit_starts_at_the_beginning(word_folder, rows):
    data = SFTDataModule(word_folder, train=rows, validation=rows, batch_size=3)
    assert fit(data, max_steps=2) == fit(data, max_steps=2)


def test_fitting_works_without_validation_data(word_folder, rows):
    seen = fit(SFTDataModule(word_folder, train=rows, batch_size=5), max_epochs=1)
    assert sorted(length for batch in seen for length in batch) == list(range(3, 13))


def test_lightning_moves_our_batches(word_folder, write_rows):
    file = write_rows("p.jsonl", [{"prompt": "one", "extra": 1}])
    data = PPODataModule(word_folder, test=file)
    data.setup("test")
    (batch,) = data.test_dataloader()
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert type(moved) is type(batch)
    assert moved.input_ids.device.type == "meta"
    assert moved.fields == batch.fields


class TrainerOf:
    """As much of a Trainer as a data module looks at."""

    def __init__(self, rank, world_size):
        self.global_rank = rank
        self.world_size = world_size
        self.overfit_batches = 0.0


def test_rank_and_world_size_come_from_the_trainer(word_folder, rows):
    shares = []
    for rank in range(2):
        data = SFTDataModule(word_folder, train=rows, validation=rows, batch_size=4)
        data.trainer = TrainerOf(rank, 2)
        data.setup("fit")
        batches = [*data.train_dataloader(), *data.val_dataloader()]
        shares.append([batch.lengths.tolist() for batch in batches])
    assert [len(batch) for batch in shares[0]] == [2, 2, 2, 2, 1]
    # Validation: rows of 3 to 12 tokens in their order, dealt out in turn.
    assert [share[2:] for share in shares] == [
        [[3, 5], [7, 9], [11]],
        [[4, 6], [8, 10], [12]],
    ]


def test_limits_take_the_first_rows(word_folder, rows):
    data = SFTDataModule(
        word_folder, train=rows, validation=rows, batch_size=1, limit_train=3, limit_validation=2
    )
    data.setup("fit")
    assert sorted(batch.lengths.item() for batch in data.train_dataloader()) == [3, 4, 5]
    assert [batch.lengths.item() for batch in data.val_dataloader()] == [3, 4]


def test_data_are_read_once(word_folder, rows, monkeypatch):
    data = SFTDataModule(word_folder, train=rows, validation=rows)
    data.setup("fit")
    monkeypatch.setattr(data, "prepare", lambda _: pytest.fail("read again"))
    data.setup("fit")
    data.setup("validate")


@pytest.mark.parametrize(
    ("stage", "key"), [("fit", "train"), ("validate", "validation"), ("test", "test")]
)
def test_a_stage_without_data_names_the_key(word_folder, stage, key):
    with pytest.raises(ConfigError, match=f"'{stage}' needs data: set 'data.{key}' to"):
        SFTDataModule(word_folder).setup(stage)


def test_rows_are_checked_before_training_validation_included(word_folder, rows, write_rows):
    bad = write_rows("bad.jsonl", [{"prompt": "one"}])
    with pytest.raises(DataError, match=r"bad\.jsonl:1"):
        SFTDataModule(word_folder, train=rows, validation=bad).setup("fit")


def test_when_all_rows_are_dropped(word_folder, rows):
    data = SFTDataModule(word_folder, train=rows, max_length=2, overlong="drop")
    with pytest.raises(DataError, match="all 10 rows are too long"):
        data.setup("fit")


def test_a_missing_tokenizer(rows, tmp_path):
    with pytest.raises(CheckpointError):
        SFTDataModule(str(tmp_path / "none"), train=rows).setup("fit")


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("batch_size", 0, 1),
        ("eval_batch_size", 0, 1),
        ("limit_train", 0, 1),
        ("limit_validation", -1, 1),
        ("seed", -1, 0),
        ("num_proc", 0, 1),
    ],
)
def test_numbers_out_of_range(name, value, least):
    with pytest.raises(ConfigError, match=f"data.{name} is {value}; it must be at least {least}"):
        SFTDataModule("tokenizer", **{name: value})


@pytest.mark.parametrize("module_class", MODULES)
def test_the_config_parser_finds_every_setting_documented(module_class):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(module_class, "data")
    settings = {
        action.dest.removeprefix("data."): action.help
        for action in parser._actions
        if action.dest.startswith("data.")
    }
    own = {"max_length", "append_eos", "empty_responses"}
    if module_class is PPODataModule:
        own = {"max_prompt_length", "pretraining", "pretraining_batch_size"}
    elif module_class is SFTDataModule:
        own |= {"learn"}
    else:
        own |= {
            "aggregation",
            "aggregation.help",
            "subset",
            "subset.raters",
            "subset.rows",
            "subset.seed",
        }
    if module_class is RewardDataModule:
        own |= {"margin"}
    assert set(settings) == SHARED | own
    assert all(settings.values())
    parsed = parser.parse_object({"data": {"tokenizer": "t", "columns": {"prompt": "q"}}})
    assert isinstance(parser.instantiate(parsed).data, module_class)
