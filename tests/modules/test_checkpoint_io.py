from __future__ import annotations

import pytest
import torch

from lit_rlhf.modules.checkpoint_io import AtomicCheckpointIO


class _Unsavable:
    def __reduce__(self):
        raise OSError("no space left on device")


def test_saves_what_torch_loads_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "new" / "policy.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(4)}, target)
    assert torch.load(target, weights_only=True)["weights"].tolist() == [0, 1, 2, 3]
    assert [path.name for path in target.parent.iterdir()] == ["policy.ckpt"]


def test_a_save_that_fails_keeps_the_older_checkpoint(tmp_path):
    target = tmp_path / "policy.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, target)
    with pytest.raises(OSError, match="no space"):
        AtomicCheckpointIO().save_checkpoint({"step": _Unsavable()}, target)
    assert torch.load(target, weights_only=True) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["policy.ckpt"]
