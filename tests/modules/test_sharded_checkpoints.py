"""Folders of shards: whole or not at all, no code run from them."""

import errno
import functools
import os
import pickle
import shutil
import threading
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from lit_rlhf.checkpoints import read_index, read_verified
from lit_rlhf.errors import CheckpointError
from lit_rlhf.modules import checkpoint_io
from lit_rlhf.modules.checkpoint_io import AtomicCheckpointIO
from lit_rlhf.modules.sharding import FSDP2Strategy
from lit_rlhf.whole_files import partial_of, put_in_place
from tests.modules.test_sharding import LanguageModule
from tests.support.phases import phase_trainer as trainer_for
from tests.support.phases import weights as full_weights
from tests.support.two_processes import run_in_two_processes


def trainer_with_shards(folder):
    strategy = FSDP2Strategy(save_distributed_checkpoint=True)
    return trainer_for(folder, strategy=strategy, devices=2, max_epochs=2)


def save_twice_and_resume(folder):
    """Return the weights of a run, and of one that was resumed from what it saved last."""
    trainer, module = trainer_with_shards(folder), LanguageModule()
    trainer.fit(module)
    expected = full_weights(module)
    for _ in range(2):
        trainer.save_checkpoint(f"{folder}/last.ckpt")
    resumed = LanguageModule()
    trainer_with_shards(folder).fit(resumed, ckpt_path=f"{folder}/last.ckpt")
    return expected, full_weights(resumed)


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


class SavesBehind(pl.Callback):
    """Saves `last.ckpt` before batch 2, before 3 with writers held up to batch 5, and at the end.

    Attributes:
        weights: those before each batch, by its number.
        found: what `last.ckpt` holds before a batch, and whether `older.ckpt` is there.
    """

    def __init__(self, folder):
        self.last, self.older = f"{folder}/last.ckpt", f"{folder}/older.ckpt"
        self.is_free = threading.Event()
        self.is_free.set()
        self.weights, self.found = {}, {}

    def look(self):
        return read_verified(Path(self.last))["state_dict"], os.path.exists(self.older)

    def on_train_batch_start(self, trainer, module, *_):
        step = trainer.global_step
        self.weights[step] = full_weights(module)
        if step in (3, 6):
            trainer.strategy.finish_writing()
            trainer.strategy.barrier()
        if step == 1:
            trainer.save_checkpoint(self.older)
        if step == 2:
            trainer.save_checkpoint(self.last)
        if step == 3:
            self.is_free.clear()
            trainer.save_checkpoint(self.last)
            trainer.strategy.remove_checkpoint(self.older)
        if step in (5, 6):
            self.found[step] = self.look()
            self.is_free.set()

    def on_train_end(self, trainer, module):
        self.weights["end"] = full_weights(module)
        trainer.save_checkpoint(self.last)


def train_while_writers_are_held(folder):
    callback = SavesBehind(folder)
    write = FileSystemWriter.write_data

    def held(*arguments):
        callback.is_free.wait()
        time.sleep(0.3)
        return write(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSystemWriter, "write_data", held)
        strategy = FSDP2Strategy(save_distributed_checkpoint=True)
        options = {"strategy": strategy, "devices": 2, "max_epochs": 2, "callbacks": callback}
        trainer_for(folder, **options).fit(LanguageModule())
    return callback.weights, callback.found | {"end": callback.look()}


def fail_while_training(folder):
    """Return what was said of a write that failed on the last rank, and what is left."""

    class Saves(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 1:
                trainer.save_checkpoint(f"{folder}/older.ckpt")
            if trainer.global_step == 2:
                trainer.strategy.finish_writing()
                if trainer.global_rank == 1:
                    patch.setattr(FileSystemWriter, "write_data", no_space)
                trainer.save_checkpoint(f"{folder}/newer.ckpt")
                trainer.strategy.remove_checkpoint(f"{folder}/older.ckpt")

    checkpoints = AtomicCheckpointIO()
    strategy = FSDP2Strategy(save_distributed_checkpoint=True)
    options = {"strategy": strategy, "devices": 2, "plugins": checkpoints, "callbacks": Saves()}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_for(folder, **options).fit(LanguageModule())
    said = [one for one in caught if "newer.ckpt: the checkpoint could not be" in str(one.message)]
    return dict(checkpoints.unwritten), len(said), sorted(path.name for path in folder.glob("*er*"))


class LooksAtLinks(pl.Callback):
    """Notes before each batch what a kill would leave of `last.ckpt`, which is a link.

    Attributes:
        found: by step, whether what it leads to is whole.
    """

    def __init__(self, folder):
        self.last, self.found = Path(folder, "last.ckpt"), {}

    def on_train_batch_start(self, trainer, *_):
        if os.path.lexists(self.last):
            assert self.last.is_symlink()
            self.found[trainer.global_step] = (self.last / "meta.pt").is_file()
        trainer.strategy.barrier()


def link_to_what_is_written(folder):
    """Return what was found of the links while writers are slow, and what is left."""
    write = FileSystemWriter.write_data

    def slowly(*arguments):
        time.sleep(0.3)
        return write(*arguments)

    looks = LooksAtLinks(folder)
    saves = ModelCheckpoint(folder, "{step}", save_last="link", every_n_train_steps=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSystemWriter, "write_data", slowly)
        strategy = FSDP2Strategy(save_distributed_checkpoint=True)
        options = {"strategy": strategy, "devices": 2, "callbacks": [saves, looks]}
        trainer_for(folder, enable_checkpointing=True, **options).fit(LanguageModule())
    return looks.found, sorted(path.name for path in folder.glob("*.ckpt*"))


def replace_the_folder_by_a_file(folder):
    """Return whether the folder is there after a write that failed, and the file after the next."""
    options = {"strategy": FSDP2Strategy(), "devices": 2, "plugins": AtomicCheckpointIO()}
    trainer = trainer_for(folder, max_steps=1, **options)
    trainer.fit(LanguageModule())
    path = f"{folder}/last.ckpt"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(checkpoint_io, "write_checkpoint", no_space)
        trainer.save_checkpoint(path)
    is_kept = os.path.isdir(path)
    trainer.save_checkpoint(path)
    return is_kept, os.path.isfile(path)


def write_behind(folder):
    for name in ("failing", "links"):
        (folder / name).mkdir(exist_ok=True)
    held = train_while_writers_are_held(folder)
    failed = fail_while_training(folder / "failing")
    linked = link_to_what_is_written(folder / "links")
    return held, failed, linked, replace_the_folder_by_a_file(folder)


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def by_rank(folder):
    return run_in_two_processes(save_twice_and_resume, str(folder), init_process_group=False)


def test_a_folder_resumes_and_is_all_that_is_left(by_rank, folder):
    for expected, resumed in by_rank:
        for name, weight in expected.items():
            assert torch.equal(resumed[name], weight), name
    assert [one.name for one in folder.glob("last*")] == ["last.ckpt"]


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


@pytest.fixture(scope="module")
def written_behind(tmp_path_factory):
    return run_in_two_processes(
        write_behind, tmp_path_factory.mktemp("behind"), init_process_group=False
    )


def test_training_goes_on_while_a_checkpoint_of_that_moment_is_written(written_behind):
    """What is found at batch 5 is what a kill would leave there."""
    for (weights, found), *_ in written_behind:
        saved_at = {5: 2, 6: 3, "end": "end"}
        assert {when: has_older for when, (_, has_older) in found.items()} == {
            5: True,
            6: False,
            "end": False,
        }
        for when, (saved, _) in found.items():
            for name, weight in weights[saved_at[when]].items():
                assert torch.equal(saved[name], weight), (when, name)
        name = next(iter(weights[2]))
        assert not any(torch.equal(weights[2][name], weights[step][name]) for step in (3, 5))


def test_a_write_that_failed_is_reported_by_all_and_the_older_one_stays(written_behind):
    for _, (unwritten, num_said, names), *_ in written_behind:
        ((path, fault),) = unwritten.items()
        assert path.endswith("newer.ckpt")
        assert fault.startswith("process 1: ")
        assert num_said == 1
        assert names == ["newer.ckpt.partial", "older.ckpt"]


def test_a_link_leads_to_a_folder_that_is_whole(written_behind):
    for _, _, (found, names), _ in written_behind:
        assert len(found) > 1
        assert all(found.values())
        assert names[0] == "last.ckpt"
        assert [name.startswith("step=") for name in names[1:]] == [True]


def test_a_folder_stays_until_the_file_that_replaces_it_is_written(written_behind):
    assert [replaced for *_, replaced in written_behind] == [(True, True)] * 2


@pytest.fixture
def whole(by_rank, folder, tmp_path):
    """A copy of the folder."""
    return Path(shutil.copytree(folder / "last.ckpt", tmp_path / "last.ckpt"))


@pytest.mark.parametrize("replacement", [1, 2])
def test_a_kill_between_the_renames_leaves_one_that_last_finds(whole, monkeypatch, replacement):
    """Lightning takes what is newest of the names that begin with `last`."""
    shutil.copytree(whole, partial_of(whole))
    replace, num_left = os.replace, [replacement]

    def replace_until_killed(source, target):
        num_left[0] -= 1
        if num_left[0] < 0:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_until_killed)
        with pytest.raises(KeyboardInterrupt):
            put_in_place(whole)
    found = sorted(whole.parent.glob("last*.ckpt"))
    assert all("state_dict" in read_verified(one) for one in found)
    assert [one.name for one in found] == ["last-old.ckpt", "last.ckpt"][:replacement]
    # The next checkpoint leaves nothing of it behind.
    shutil.copytree(found[0], partial_of(whole), dirs_exist_ok=True)
    put_in_place(whole)
    assert [one.name for one in whole.parent.glob("last*")] == ["last.ckpt"]


@pytest.mark.parametrize("name", ["meta.pt", ".metadata", "__0_0.distcp"])
def test_a_folder_that_lacks_a_file_is_torn(whole, name):
    (whole / name).unlink()
    with pytest.raises(CheckpointError, match=rf"last\.ckpt: torn: .*{name}"):
        read_verified(whole)


def test_an_altered_shard_is_found_out(whole):
    shard = whole / "__1_0.distcp"
    content = bytearray(shard.read_bytes())
    weights = content.index(b"PK\x03\x04", len(content) // 2) - 200  # the end of a record
    content[weights] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp: (altered|torn)"):
        read_verified(whole)


def test_code_in_the_index_is_named_and_not_run(whole, tmp_path):
    read_index(whole)
    harm = tmp_path / "harm"
    (whole / ".metadata").write_bytes(pickle.dumps(functools.partial(open, harm, "w")))
    with pytest.raises(CheckpointError, match=r"functools\.partial is pickled in its index"):
        read_index(whole)
    assert not harm.exists()


class Attribute:
    """Pickled as a call of `getattr`."""

    def __init__(self, kind, name):
        self.call = (getattr, (kind, name))

    def __reduce__(self):
        return self.call


def test_of_attributes_the_index_may_name_members_of_enumerations_alone(tmp_path):
    def read(kind, name):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(Attribute(kind, name)))
        return read_index(tmp_path)

    # As Python before 3.11.4 pickles them.
    member = _MEM_FORMAT_ENCODING.TORCH_PRESERVE_FORMAT
    assert read(_MEM_FORMAT_ENCODING, member.name) is member
    for kind, name in ((_MEM_FORMAT_ENCODING, "__members__"), (torch.Size, "numel")):
        with pytest.raises(CheckpointError, match=r"builtins\.getattr is pickled"):
            read(kind, name)
