"""Data and models execute nothing; code from a model's folder is never trusted by itself."""

import ast
import contextlib
import json
import pickle
from pathlib import Path

import pytest

import lit_rlhf
from lit_rlhf.data import PPODataModule, SFTDataModule
from lit_rlhf.errors import CheckpointError, LitRLHFError
from lit_rlhf.models import load_causal_lm, load_reward_model, load_tokenizer
from lit_rlhf.redaction import redact
from tests.models.examples import save_own_code
from tests.support.tokenizer import tiny_tokenizer

SOURCES = sorted(Path(lit_rlhf.__file__).parent.rglob("*.py"))


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that appears in the folder of the test once foreign code has run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "executed"


class Executes:
    """Leaves the mark when it is unpickled."""

    def __reduce__(self):
        return open, ("executed", "w")


@pytest.mark.parametrize("load", [load_causal_lm, load_reward_model])
def test_code_beside_a_model_is_not_run_and_not_asked_about(tmp_path, mark, monkeypatch, load):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whatever somebody would answer
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        load(save_own_code(tmp_path / "model"))
    assert not mark.exists()


def test_code_beside_a_tokenizer_is_not_run(tmp_path, mark, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = save_own_code(tmp_path / "model")
    with contextlib.suppress(CheckpointError):  # its files may be enough
        load_tokenizer(folder)
    assert not mark.exists()


def calls_of(path):
    """Return the dotted names that a file calls, with the names of their keyword arguments."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: word.value for word in node.keywords}


EXECUTING = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_module_neither_evaluates_nor_unpickles(path):
    for name, words in calls_of(path):
        assert name not in EXECUTING | {"os.system"}, name
        if name == "torch.load":
            assert ast.unparse(words["weights_only"]) == "True"
        assert "trust_remote_code" not in words or not words["trust_remote_code"].value


def test_a_pickle_under_a_data_files_name_is_no_data(tmp_path, mark):
    for name in ("rows.jsonl", "rows.json"):
        (tmp_path / name).write_bytes(pickle.dumps(Executes()))
        tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
        with pytest.raises(LitRLHFError, match=r"rows\.json"):
            SFTDataModule(str(tmp_path / "tokenizer"), train=str(tmp_path / name)).setup("fit")
    assert not mark.exists()


def test_a_script_in_a_data_folder_is_not_run(tmp_path, mark):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text("open('executed', 'w')\n")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(LitRLHFError, match="could not be read as a data set"):
        SFTDataModule(str(tmp_path / "tokenizer"), train=str(folder)).setup("fit")
    assert not mark.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    ],
)
def test_a_chat_template_reaches_nothing_but_the_messages(tmp_path, template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": [{"role": "user", "content": "hi"}]}) + "\n")
    data = PPODataModule(str(tmp_path / "tokenizer"), train=str(rows), batch_size=1)
    with pytest.raises(LitRLHFError, match=r"rows\.jsonl:1: the chat template refuses"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://ann:pass@db/x", "postgresql://ann:***@db/x"),
        ("see https://u:p@h, then", "see https://u:***@h, then"),
        ("postgresql+psycopg://u:a%40b@h/x", "postgresql+psycopg://u:***@h/x"),
        ("https://host:8000/v1", "https://host:8000/v1"),
        ("redis://:secret@h", "redis://:***@h"),
        ("a key abcdef123 here", "a key *** here"),
        ("nothing", "nothing"),
    ],
)
def test_passwords_and_keys_are_replaced(monkeypatch, text, expected):
    monkeypatch.setenv("OWN_API_KEY", "abcdef123")
    monkeypatch.setenv("SHORT_TOKEN", "not")  # would be found inside of words
    assert redact(text) == expected
