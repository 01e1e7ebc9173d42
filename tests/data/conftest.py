import json

import pytest

from tests.data.word_tokenizer import word_tokenizer
from tests.support.tokenizer import tiny_tokenizer


@pytest.fixture(params=["pad is not EOS", "pad is EOS"])
def tokenizer(request):
    """Both kinds of tokenizers."""
    return word_tokenizer() if request.param == "pad is not EOS" else tiny_tokenizer()


@pytest.fixture
def word_folder(tmp_path):
    """A folder with the files of the word tokenizer."""
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.fixture
def write_rows(tmp_path):
    """Write rows as JSONL and return the file's name."""

    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
