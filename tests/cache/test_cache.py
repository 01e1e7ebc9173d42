import pytest

from lit_rlhf.cache import cache_folder, keep

INPUTS = {"format": 1, "rows": "abc", "width": None}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_RLHF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def folder_of(kind, inputs):
    return keep(kind, inputs, lambda folder: folder)


def test_the_folder_is_named_by_the_environment_or_lies_in_the_home_folder(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "home"
    monkeypatch.delenv("LIT_RLHF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lit_rlhf"


def test_any_other_input_has_another_folder(home):
    others = [{**INPUTS, "format": 2}, {**INPUTS, "width": 0}, {"format": 1}]
    folders = {folder_of("kind", inputs) for inputs in [INPUTS, *others]}
    folders.add(folder_of("other kind", INPUTS))
    assert len(folders) == 5
    assert folder_of("kind", dict(reversed(INPUTS.items()))) in folders
    assert folder_of("kind", INPUTS).parent == home / "kind"
    # Nobody else finds what has no inputs.
    assert folder_of("kind", None) != folder_of("kind", None)


def test_a_home_that_cannot_be_written_to_does_not_end_the_run(home, caplog):
    home.write_text("a file where the folder should be")
    assert folder_of("kind", INPUTS).is_dir()
    assert "cannot be written to" in caplog.text
