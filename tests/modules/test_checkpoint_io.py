from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_rlhf.checkpoints import unreadable_object
from lit_rlhf.errors import CheckpointError, ConfigError
from lit_rlhf.modules import checkpoint_io
from lit_rlhf.modules.checkpoint_io import AtomicCheckpointIO


class _Unsavable:
    def __reduce__(self):
        raise OSError("no space left on device")


def test_saves_what_torch_loads_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "new" / "policy.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(4)}, target)
    assert torch.load(target, weights_only=True)["weights"].tolist() == [0, 1, 2, 3]
    assert [path.name for path in target.parent.iterdir()] == ["policy.ckpt"]


def test_a_save_that_fails_is_reported_and_keeps_the_older_checkpoint(tmp_path):
    target = tmp_path / "policy.ckpt"
    checkpoints = AtomicCheckpointIO()
    checkpoints.save_checkpoint({"step": 1}, target)
    with pytest.warns(UserWarning, match=r"policy\.ckpt: .* \(no space .* training goes on"):
        checkpoints.save_checkpoint({"step": _Unsavable()}, target)
    assert torch.load(target, weights_only=True) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["policy.ckpt"]
    assert list(checkpoints.unwritten) == [str(target)]
    checkpoints.save_checkpoint({"step": 2}, target)
    assert checkpoints.unwritten == {}


def test_what_no_run_could_go_on_from_is_told_once(tmp_path):
    checkpoints, state = AtomicCheckpointIO(), {"callbacks": {"Own": {"path": tmp_path}}}
    with pytest.warns(UserWarning, match=r"any\.ckpt: no run can go on from it: .*PosixPath is in"):
        checkpoints.save_checkpoint(state, tmp_path / "any.ckpt")
    checkpoints.save_checkpoint(state, tmp_path / "any.ckpt")  # a warning would be an error
    assert checkpoints.unwritten == {}


def test_what_stands_beside_the_weights_is_looked_at_where_its_kinds_are_new(tmp_path, monkeypatch):
    looked_at = []

    def look(content):
        looked_at.append(content)
        return unreadable_object(content)

    monkeypatch.setattr(checkpoint_io, "unreadable_object", look)
    checkpoints = AtomicCheckpointIO()
    for step in range(3):
        state = {"state_dict": {"w": torch.zeros(step + 1)}, "loops": {"step": step, "at": [1.0]}}
        checkpoints.save_checkpoint(state, tmp_path / "any.ckpt")
    assert len(looked_at) == 1
    assert "state_dict" not in looked_at[0]
    checkpoints.save_checkpoint(state | {"callbacks": [np.float32(1)]}, tmp_path / "any.ckpt")
    assert len(looked_at) == 2
    state["callbacks"] = {"Own": {"seen": (tmp_path,)}}  # only now
    with pytest.warns(UserWarning, match=r"no run can go on from it: .*PosixPath is in"):
        checkpoints.save_checkpoint(state, tmp_path / "any.ckpt")
    checkpoints.save_checkpoint(state | {"more": {1j}}, tmp_path / "any.ckpt")
    assert len(looked_at) == 3


@pytest.mark.filterwarnings("ignore:.*the checkpoint could not be written")
def test_the_run_ends_after_failures_in_a_row_alone(tmp_path):
    checkpoints = AtomicCheckpointIO(max_failures=2)
    target = tmp_path / "policy.ckpt"
    checkpoints.save_checkpoint({"step": _Unsavable()}, target)
    checkpoints.save_checkpoint({"step": 1}, target)
    checkpoints.save_checkpoint({"step": _Unsavable()}, target)
    with pytest.raises(CheckpointError, match=r"2\. failure in a row; what stood there is kept"):
        checkpoints.save_checkpoint({"step": _Unsavable()}, target)


@pytest.mark.filterwarnings("ignore:.*the checkpoint could not be written")
def test_a_checkpoint_is_not_removed_for_one_that_was_not_written(tmp_path):
    checkpoints = AtomicCheckpointIO()
    checkpoints.save_checkpoint({"step": 1}, tmp_path / "step=1.ckpt")
    checkpoints.save_checkpoint({"step": _Unsavable()}, tmp_path / "step=2.ckpt")
    checkpoints.remove_checkpoint(tmp_path / "step=1.ckpt")  # as ModelCheckpoint does now
    assert checkpoints.load_checkpoint(tmp_path / "step=1.ckpt") == {"step": 1}
    checkpoints.save_checkpoint({"step": 3}, tmp_path / "step=3.ckpt")
    checkpoints.remove_checkpoint(tmp_path / "step=1.ckpt")
    assert not (tmp_path / "step=1.ckpt").exists()


@pytest.mark.filterwarnings("ignore:.*the checkpoint could not be written")
def test_a_folder_that_cannot_be_written_to_is_a_failure_like_any_other(tmp_path):
    (tmp_path / "file").write_text("no folder")
    checkpoints = AtomicCheckpointIO()
    checkpoints.save_checkpoint({"step": 1}, tmp_path / "file" / "policy.ckpt")
    assert list(checkpoints.unwritten) == [str(tmp_path / "file" / "policy.ckpt")]


def test_settings_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="max_failures is 0"):
        AtomicCheckpointIO(max_failures=0)
    with pytest.raises(ConfigError, match="weights_only false would run code"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "policy.ckpt", weights_only=False)


def test_a_torn_checkpoint_is_refused(tmp_path):
    checkpoints = AtomicCheckpointIO()
    checkpoints.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert checkpoints.load_checkpoint(tmp_path / "last.ckpt") == {"step": 1}
    (tmp_path / "last.ckpt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: torn"):
        checkpoints.load_checkpoint(tmp_path / "last.ckpt")
