import json

import pytest
from lightning.pytorch.loggers import CSVLogger

from lit_rlhf.callbacks import SampleTableCallback, samples
from lit_rlhf.errors import ConfigError
from tests.support.reporting import ReportingModule, quiet_trainer


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_without_wandb_the_samples_are_appended_to_a_file(tmp_path):
    logger = CSVLogger(tmp_path)
    callback = SampleTableCallback(num_samples=2)
    quiet_trainer(tmp_path, logger=logger, callbacks=[callback], max_epochs=2).fit(
        ReportingModule()
    )
    assert (tmp_path / "lightning_logs/version_0/samples.jsonl").is_file()
    assert rows(tmp_path / "lightning_logs/version_0/samples.jsonl") == [
        {"step": step, "prompt": f"prompt {n}", "response": "bien sûr\n", "score": n / 2}
        for step in (2, 4)
        for n in (0, 1)
    ]


def test_without_any_logger_the_file_stands_in_the_root_folder(tmp_path):
    quiet_trainer(tmp_path, callbacks=[SampleTableCallback()]).fit(ReportingModule())
    assert [row["score"] for row in rows(tmp_path / "samples.jsonl")] == [0.0, 0.5, 1.0]


def test_every_second_validation(tmp_path):
    callback = SampleTableCallback(num_samples=1, every_n_validations=2)
    quiet_trainer(tmp_path, callbacks=[callback], max_epochs=5).fit(ReportingModule())
    assert [row["step"] for row in rows(tmp_path / "samples.jsonl")] == [4, 8]


def test_the_count_of_validations_is_in_the_checkpoint(tmp_path):
    first = quiet_trainer(tmp_path, callbacks=[SampleTableCallback(1, 2)], max_epochs=1)
    first.fit(ReportingModule())
    first.save_checkpoint(tmp_path / "first.ckpt")
    assert not (tmp_path / "samples.jsonl").exists()
    second = quiet_trainer(tmp_path, callbacks=[SampleTableCallback(1, 2)], max_epochs=2)
    second.fit(ReportingModule(), ckpt_path=tmp_path / "first.ckpt")
    assert [row["step"] for row in rows(tmp_path / "samples.jsonl")] == [4]


def test_a_module_without_samples_is_refused(tmp_path):
    module = ReportingModule()
    del module.validation_samples
    with pytest.raises(ConfigError, match="ReportingModule has none"):
        quiet_trainer(tmp_path, callbacks=[SampleTableCallback()]).fit(module)


@pytest.mark.parametrize("name", ["num_samples", "every_n_validations"])
def test_nothing_to_show_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name} is 0; it must be at least 1"):
        SampleTableCallback(**{name: 0})


def test_a_new_run_begins_the_file_anew_and_a_torn_row_goes(tmp_path):
    path = tmp_path / "samples.jsonl"
    old = [json.dumps({"step": step, "prompt": "old"}) + "\n" for step in (4, 8)]
    path.write_text("".join(old) + '{"step": 1')
    quiet_trainer(tmp_path, callbacks=[SampleTableCallback()]).fit(ReportingModule())
    assert [row["prompt"] for row in rows(path)] == ["prompt 0", "prompt 1", "prompt 2"]


def test_a_resumed_run_reads_rows_with_any_line_break_of_unicode(tmp_path):
    path = tmp_path / "samples.jsonl"
    row = json.dumps({"step": 2, "prompt": "a\u2028b\x85c"}, ensure_ascii=False) + "\n"
    path.write_text(row + json.dumps({"step": 9}) + "\n", encoding="utf-8")
    samples._drop_rows_after(path, 4)
    assert path.read_text(encoding="utf-8") == row


def test_a_table_that_cannot_be_written_does_not_end_the_run(tmp_path):
    (tmp_path / "samples.jsonl").mkdir()
    callback = SampleTableCallback()
    trainer = quiet_trainer(tmp_path, callbacks=[callback])
    callback.on_train_start = lambda *_: None
    with pytest.warns(UserWarning, match=r"samples\.jsonl: the samples of step 2 could not be"):
        trainer.fit(ReportingModule())
    assert trainer.global_step == 2
