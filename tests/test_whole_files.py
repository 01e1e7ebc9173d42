import os

import pytest

from lit_rlhf.whole_files import written_whole


def write_number(folder, number, error=None):
    with written_whole(folder) as partial:
        partial.mkdir()
        (partial / "number").write_text(str(number))
        if error is not None:
            raise error


def test_a_newer_folder_takes_the_place_of_the_older_one(tmp_path):
    folder = tmp_path / "new" / "model"
    for number in (1, 2):
        write_number(folder, number)
        assert (folder / "number").read_text() == str(number)
        assert os.listdir(folder.parent) == ["model"]


def test_a_folder_takes_the_place_of_a_file_and_the_other_way_round(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_text("0")
    (tmp_path / "last-old.txt").write_text("of somebody else")
    write_number(path, 1)
    assert (path / "number").read_text() == "1"
    with written_whole(path) as partial:
        partial.write_text("2")
    assert path.read_text() == "2"
    assert sorted(os.listdir(tmp_path)) == ["last-old.txt", "last.ckpt"]


def test_a_folder_takes_the_place_of_a_link_and_leaves_what_it_led_to(tmp_path):
    older, link = tmp_path / "step=1.ckpt", tmp_path / "last.ckpt"
    write_number(older, 1)
    link.symlink_to("step=1.ckpt")
    for number in (2, 3):
        write_number(link, number)
        assert not link.is_symlink()
        numbers = [(path / "number").read_text() for path in (older, link)]
        assert numbers == ["1", str(number)]
        assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "step=1.ckpt"]


def write_text(file, text, error):
    with written_whole(file) as partial:
        partial.write_text(text)
        raise error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_keeps_the_older_one(error, tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("1")
    write_number(folder, 1)
    with pytest.raises(type(error)):
        write_number(folder, 2, error)
    with pytest.raises(type(error)):
        write_text(file, "2", error)
    assert file.read_text() == (folder / "number").read_text() == "1"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("at", ["writing", "first rename", "second rename"])
def test_a_kill_leaves_no_half_folder(at, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    write_number(folder, 1)
    replace, kills = os.replace, {"first rename": 0, "second rename": 1}

    def killed(*paths, done=[]):  # noqa: B006 - counts its calls
        if len(done) == kills.get(at):
            os._exit(9)
        done.append(replace(*paths))

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "replace", killed)
        with written_whole(folder) as partial:
            partial.mkdir()
            (partial / "number").write_text("2")
            if at == "writing":
                os._exit(9)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    if at != "second rename":
        assert (folder / "number").read_text() == "1"
    write_number(folder, 3)  # and the next write clears what is left
    assert (folder / "number").read_text() == "3"
    assert os.listdir(tmp_path) == ["model"]


def test_between_the_renames_the_older_folder_is_found_again(tmp_path):
    folder = tmp_path / "model"
    write_number(tmp_path / "model-old", 1)
    with pytest.raises(OSError, match="No space left"):
        write_number(folder, 2, OSError(28, "No space left on device"))
    assert (folder / "number").read_text() == "1"


def test_file_and_folder_are_on_the_disk_around_the_rename(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace

    def note_sync(handle):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    def note_replace(source, target):
        events.append(f"rename {os.path.basename(target)}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_number(tmp_path / "model", 1)
    assert events == ["number", "model.partial", "rename model", tmp_path.name]
