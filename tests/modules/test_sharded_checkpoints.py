"""Folders of shards: whole or not at all, the one before kept, no code run from them."""

import functools
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from lit_rlhf.checkpoints import newest_whole, verify_checkpoint
from lit_rlhf.checkpoints.folders import refuse_pickled_code
from lit_rlhf.errors import CheckpointError
from lit_rlhf.modules.sharding import FSDP2Strategy
from tests.modules.test_sharding import LanguageModule, full_weights, trainer_for
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
