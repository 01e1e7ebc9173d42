"""Folders of shards: whole or not at all, the one before kept, no code run from them."""

import errno
import functools
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter

from lit_rlhf.checkpoints import newest_whole, verify_checkpoint
from lit_rlhf.checkpoints.folders import refuse_pickled_code
from lit_rlhf.errors import CheckpointError
from lit_rlhf.modules.checkpoint_io import AtomicCheckpointIO
from lit_rlhf.modules.sharding import FSDP2Strategy
from tests.modules.test_sharding import LanguageModule
from tests.support.phases import phase_trainer as trainer_for
from tests.support.phases import weights as full_weights
from tests.support.two_processes import run_in_two_processes


def trainer_with_shards(folder):
    strategy = FSDP2Strategy(save_distributed_checkpoint=True)
    return trainer_for(folder, strategy=strategy, devices=2, max_epochs=2)


def save_twice_and_resume(folder):
    """Return the weights of a resumed run, of one from a torn folder, and what that said."""
    trainer, module = trainer_with_shards(folder), LanguageModule()
    trainer.fit(module)
    expected = full_weights(module)
    for _ in range(2):
        trainer.save_checkpoint(f"{folder}/last.ckpt")
    resumed = resume(folder)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        next(Path(folder, "last.ckpt").glob("*.distcp")).unlink()
    trainer.strategy.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fallen_back = resume(folder)
    return expected, resumed, fallen_back, [str(one.message) for one in caught]


def save_on_a_full_disk(folder):
    """Return what was said of a write that failed on the last rank, and the weights resumed."""
    checkpoints = AtomicCheckpointIO(max_failures=2)
    strategy = FSDP2Strategy(save_distributed_checkpoint=True)
    trainer = trainer_for(folder, strategy=strategy, devices=2, plugins=checkpoints)
    module = LanguageModule()
    trainer.fit(module)
    expected = full_weights(module)
    path = f"{folder}/last.ckpt"
    trainer.save_checkpoint(path)
    with pytest.MonkeyPatch.context() as patch:
        if trainer.global_rank == 1:
            patch.setattr(FileSystemWriter, "write_data", no_space)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.save_checkpoint(path)
        unwritten = dict(checkpoints.unwritten)
        with pytest.raises(CheckpointError) as ended:
            trainer.save_checkpoint(path)
    resumed = LanguageModule()  # all of its batches are behind it
    trainer_for(folder, strategy=FSDP2Strategy(), devices=2).fit(resumed, ckpt_path=path)
    messages = [str(one.message) for one in caught if "could not be written" in str(one.message)]
    return expected, full_weights(resumed), unwritten, messages, str(ended.value)


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def resume(folder):
    module = LanguageModule()
    trainer_with_shards(folder).fit(module, ckpt_path=f"{folder}/last.ckpt")
    return full_weights(module)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def by_rank(folder):
    return run_in_two_processes(save_twice_and_resume, str(folder), init_process_group=False)


def test_a_folder_resumes_and_a_torn_one_gives_way_to_the_one_before(by_rank):
    for expected, resumed, fallen_back, _ in by_rank:
        for name, weight in expected.items():
            assert torch.equal(resumed[name], weight), name
            assert torch.equal(fallen_back[name], weight), name
    messages = [message for message in by_rank[0][3] if "last.ckpt: torn" in message]
    assert len(messages) == 1
    assert "is missing. The run goes on from the one before it" in messages[0]


def test_a_full_disk_is_reported_by_all_and_the_older_folder_stays(tmp_path):
    by_rank = run_in_two_processes(save_on_a_full_disk, str(tmp_path), init_process_group=False)
    for expected, resumed, unwritten, messages, ended in by_rank:
        (fault,) = unwritten.values()
        assert fault.startswith("process 1: ")
        assert "No space left on device" in fault
        assert len(messages) == 1
        assert "what stood there is kept, and training goes on" in messages[0]
        assert "2. failure in a row" in ended
        for name, weight in expected.items():
            assert torch.equal(resumed[name], weight), name
    assert (tmp_path / "last.ckpt" / "checksums.json").exists()


@pytest.fixture
def whole(by_rank, folder, tmp_path):
    """A copy of the folder that is whole."""
    return Path(shutil.copytree(folder / "last-previous.ckpt", tmp_path / "last.ckpt"))


def test_the_checksums_survive_copying(whole):
    verify_checkpoint(whole)
    assert {"meta.pt", ".metadata", "checksums.json"} < {one.name for one in whole.iterdir()}


@pytest.mark.parametrize("name", ["meta.pt", ".metadata", "checksums.json", "__0_0.distcp"])
def test_a_folder_that_lacks_a_file_is_torn(whole, name):
    (whole / name).unlink()
    with pytest.raises(CheckpointError, match=rf"last\.ckpt: torn: .*{name}"):
        newest_whole(whole)


def test_an_altered_shard_is_found_out(whole):
    shard = whole / "__1_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"altered: its file __1_0\.distcp"):
        verify_checkpoint(whole)


def test_code_in_the_index_is_named_and_not_run(whole, tmp_path):
    refuse_pickled_code(whole)
    harm = tmp_path / "harm"
    (whole / ".metadata").write_bytes(pickle.dumps(functools.partial(open, harm, "w")))
    with pytest.raises(CheckpointError, match=r"functools\.partial is pickled in its index"):
        refuse_pickled_code(whole)
    assert not harm.exists()
