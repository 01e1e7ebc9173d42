import csv
import resource

import pytest

from lit_rlhf.callbacks import ResumableCSVLogger
from lit_rlhf.errors import ConfigError


def logger(folder):
    return ResumableCSVLogger(str(folder), name="run")


def log(one, *rows):
    for step, values in rows:
        one.log_metrics(values, step)
        one.save()


def rows(folder):
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def test_a_new_run_replaces_the_file_with_its_first_row(tmp_path):
    log(logger(tmp_path), (0, {"loss": 1.0}), (1, {"loss": 2.0}))
    second = logger(tmp_path)
    _ = second.experiment
    assert len(rows(tmp_path)) == 2
    log(second, (0, {"loss": 3.0}))
    assert rows(tmp_path) == [{"loss": "3.0", "step": "0"}]


def test_a_resumed_run_goes_on_behind_its_checkpoints_rows(tmp_path):
    log(logger(tmp_path), *[(step, {"loss": float(step)}) for step in range(5)])
    second = logger(tmp_path)
    second.experiment.resume(2)
    assert second.experiment.num_rows == 2
    log(second, (2, {"loss": 2.5, "val": 1.0}))
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2"]
    assert rows(tmp_path)[-1] == {"loss": "2.5", "val": "1.0", "step": "2"}


def test_a_torn_row_is_none(tmp_path):
    log(logger(tmp_path), (0, {"loss": 0.0}), (1, {"loss": 1.0}))
    path = tmp_path / "run" / "metrics.csv"
    path.write_text(path.read_text()[:-3])
    second = logger(tmp_path)
    second.experiment.resume()
    log(second, (1, {"loss": 1.0}))
    assert [row["loss"] for row in rows(tmp_path)] == ["0.0", "1.0"]


def test_the_result_does_not_depend_on_when_a_column_came(tmp_path):
    every = [(0, {"b": 1.0}), (1, {"a": 2.0}), (2, {"c": 3.0, "b": 4.0})]
    log(logger(tmp_path / "whole"), *every)
    log(logger(tmp_path / "parts"), *every)
    second = logger(tmp_path / "parts")
    second.experiment.resume(1)
    log(second, *every[1:])
    texts = [(tmp_path / name / "run" / "metrics.csv").read_bytes() for name in ("whole", "parts")]
    assert texts[0] == texts[1]


def test_rows_that_cannot_be_written_come_with_the_next(tmp_path):
    one = logger(tmp_path)
    log(one, (0, {"loss": 0.0}))
    size = (tmp_path / "run" / "metrics.csv").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3, limits[1]))  # half a row has room
    try:
        with pytest.warns(UserWarning, match=r"metrics\.csv cannot be written \(No space"):
            log(one, (1, {"loss": 1.0}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "run" / "metrics.csv").stat().st_size == size
    log(one, (2, {"loss": 2.0}))
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run.: metrics cannot be written there \("):
        _ = ResumableCSVLogger(str(tmp_path / "file"), name="run").experiment


def test_a_remote_folder_is_refused():
    with pytest.raises(ConfigError, match="not to s3://bucket"):
        ResumableCSVLogger("s3://bucket")


def test_a_logger_that_logged_nothing_leaves_nothing(tmp_path):
    """As in the process that only starts others."""
    logger(tmp_path).finalize("success")
    assert not list(tmp_path.iterdir())


def test_the_end_writes_what_is_left(tmp_path):
    one = logger(tmp_path)
    one.log_metrics({"loss": 1.0}, 0)
    one.finalize("success")
    assert rows(tmp_path) == [{"loss": "1.0", "step": "0"}]
