"""Bad data is one clear error before any step: what, where (file and line), and what to do.

A row of the tables: its name, the data that follow one good row (an object, or bytes as they
stand), settings of the data module, and phrases that the message must have beside the place.
"""

import json

import pytest

from lit_rlhf.data import DPODataModule, PPODataModule, RewardDataModule, SFTDataModule
from lit_rlhf.errors import DataError, LitRLHFError
from tests.models.examples import save_policy
from tests.support.tokenizer import tiny_tokenizer

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "ho"}
LONG = "word " * 60  # 300 tokens, one a character; the model looks at 128
COMPARISON = {"prompt": "p", "chosen": "a", "rejected": "b"}
GROUP = {"prompt": "p", "responses": ["a", "b"], "ratings": [[1, 2]]}
MODULES = {
    "sft": SFTDataModule,
    "reward": RewardDataModule,
    "dpo": DPODataModule,
    "ppo": PPODataModule,
}
GOOD = {
    "sft": {"id": 1, "prompt": "p", "response": "r"},
    "reward": {"id": 1, **COMPARISON},
    "dpo": {"id": 1, **GROUP},
    "ppo": {"id": 1, "prompt": "p"},
}


def deep(levels):
    return b'{"prompt": ' + b"[" * levels + b"]" * levels + b"}"


# Of every phase: what a file may have.
FILES = [
    ("broken JSON", b'{"prompt": ', {}, ["broken JSON at column", "JSON object a line"]),
    ("single quotes", b"{'prompt': 'p'}", {}, ["broken JSON at column 2", "JSON library"]),
    ("trailing comma", b'{"prompt": "p",}', {}, ["broken JSON"]),
    ("two objects in a line", b'{"prompt": "p"} {"prompt": "q"}', {}, ["broken JSON", "a line"]),
    ("a list", b'["p"]', {}, ["expected a JSON object", "found list"]),
    ("a text", b'"p"', {}, ["expected a JSON object", "found str"]),
    ("a number", b"3", {}, ["expected a JSON object", "found int"]),
    ("null", b"null", {}, ["expected a JSON object", "found NoneType"]),
    ("Latin-1", '{"prompt": "Größe"}'.encode("latin-1"), {}, ["not UTF-8", "save it as UTF-8"]),
    ("UTF-16", '{"prompt": "p"}'.encode("utf-16"), {}, ["not UTF-8", "save it as UTF-8"]),
    ("a zero byte", b'{"prompt": "\x00"}', {}, ["broken JSON"]),
    ("a bare line break", b'{"prompt": "p\nq"}', {}, ["broken JSON"]),
    ("a field twice", b'{"prompt": "p", "prompt": "q"}', {}, ["'prompt' stands twice", "correct"]),
    ("nested too deep", deep(100_000), {}, ["nested too deep", "flatten"]),
    ("endless number", b'{"prompt": ' + b"1" * 5000 + b"}", {}, ["digits", "correct the row"]),
    ("empty object", {}, {}, ["found the fields: none", "option 'columns'"]),
    ("nulls alone", {"prompt": None}, {}, ["found the fields: none"]),
    ("a misspelt field", {"promt": "p"}, {}, ["found the fields: promt", "option 'columns'"]),
    ("half a character", {"prompt": "\ud83d", "response": "r", **{
        key: value for key, value in COMPARISON.items() if key != "prompt"
    }}, {}, ["'prompt'", "write it whole"]),
    ("prompt a number", {"prompt": 3, "response": "r", "chosen": "a", "rejected": "b"}, {},
     ["'prompt'", "text or a list of chat messages", "found 3"]),
    ("prompt an object", {"prompt": {"a": 1}, "response": "r", "chosen": "a", "rejected": "b"}, {},
     ["'prompt'", "text or a list of chat messages"]),
    ("prompt an empty chat", {"prompt": [], "response": "r", "chosen": "a", "rejected": "b"}, {},
     ["'prompt'", "one chat message or more"]),
    ("a message without role",
     {"prompt": [{"content": "hi"}], "response": "r", "chosen": "a", "rejected": "b"}, {},
     ["'prompt[0].role'", "expected text"]),
    ("a message of numbers",
     {"prompt": [{"role": "user", "content": 3}], "response": "r", "chosen": "a", "rejected": "b"},
     {}, ["'prompt[0].content'", "expected text", "found 3"]),
    ("prompt of the assistant",
     {"prompt": [USER, ASSISTANT], "response": "r", "chosen": "a", "rejected": "b"}, {},
     ["'prompt'", "ends before the assistant's turn"]),
    ("a chat where texts are plain",
     {"prompt": [USER], "response": "r", "chosen": "a", "rejected": "b"}, {"template": "plain"},
     ["template is 'plain'", "set template to"]),
    ("a repeated id", {"id": 1, "prompt": "p", "response": "r", "chosen": "a", "rejected": "b"}, {},
     ["field 'id': 1", ":1 already", "data.id_field"]),
    ("a repeated id of one's own",
     {"id": 2, "uid": "x", "prompt": "p", "response": "r", "chosen": "a", "rejected": "b"},
     {"id_field": "prompt"}, ["field 'prompt': 'p'", ":1 already", "data.id_field"]),
    ("a column that is not there", {"prompt": "p"}, {"columns": {"x": "ask"}},
     ["field 'ask'", "'columns' names as the x", "mend the row"]),
    ("too long", {"prompt": LONG, "response": "r", "chosen": "a", "rejected": "b"}, {},
     ["tokens, more than the model's context of 128", "'overlong'"]),
]  # fmt: skip
OWN = {
    "sft": [
        ("no response", {"prompt": "p"}, {}, ["'prompt' and 'response'", "fields: prompt"]),
        ("no prompt", {"response": "r"}, {}, ["a 'prompt' beside", "fields: response"]),
        ("response a number", {"prompt": "p", "response": 3}, {}, ["'response'", "found 3"]),
        ("response a list of texts", {"prompt": "p", "response": ["r"]}, {}, ["'response[0]'"]),
        ("response of the user", {"prompt": "p", "response": [USER]}, {}, ["one turn of the assi"]),
        ("empty response", {"prompt": "p", "response": ""}, {}, ["no text", "empty_responses"]),
        ("white response", {"prompt": "p", "response": " \n"}, {}, ["no text", "Leave the row"]),
        ("an empty turn", {"messages": [USER, {**ASSISTANT, "content": ""}]}, {}, ["no text"]),
        ("no turn to learn", {"messages": [USER]}, {}, ["'messages'", "role 'assistant'"]),
        ("nothing to answer", {"messages": [ASSISTANT]}, {}, ["'messages'", "a turn before"]),
        ("messages a text", {"messages": "hi"}, {}, ["'messages'", "list of chat messages"]),
        ("messages of texts", {"messages": ["hi", "ho"]}, {}, ["'messages[0]'", "'role' and"]),
        ("text a list", {"text": ["a"]}, {}, ["'text'", "expected text"]),
        ("half a character in it", {"text": "a\udc00"}, {}, ["'text'", "write it whole"]),
        ("longer than max_length", {"prompt": "p", "response": "r" * 20}, {"max_length": 9},
         ["22 tokens, more than max_length=9", "Raise max_length"]),
        ("a prompt that fills the row", {"prompt": "p" * 20, "response": "r"},
         {"max_length": 9, "overlong": "truncate"}, ["prompt alone fills max_length=9", "'drop'"]),
        ("a prompt that fills the context", {"prompt": LONG, "response": "r"},
         {"overlong": "truncate"}, ["prompt alone fills the model's context of 128", "Shorten"]),
        ("a huge row", {"prompt": "p", "response": "r" * 300_000}, {},
         ["300002 tokens", "context of 128 tokens", "1 of 2 rows"]),
    ],
    "reward": [
        ("no rejected", {"prompt": "p", "chosen": "a"}, {}, ["'chosen' and 'rejected'"]),
        ("no chosen", {"prompt": "p", "rejected": "a"}, {}, ["'chosen' and 'rejected'"]),
        ("no prompt", {"chosen": "a", "rejected": "b"}, {}, ["a 'prompt' beside"]),
        ("no responses", {"prompt": "p", "response": "a"}, {}, ["or with 'responses'"]),
        ("both equal", {**COMPARISON, "rejected": "a"}, {}, ["same text ('a')", "Leave the row"]),
        ("chosen empty", {**COMPARISON, "chosen": ""}, {}, ["no text", "empty_responses"]),
        ("rejected white", {**COMPARISON, "rejected": "\t"}, {}, ["no text", "empty_responses"]),
        ("chosen a number", {**COMPARISON, "chosen": 1}, {}, ["'chosen'", "found 1"]),
        ("text beside chat", {**COMPARISON, "chosen": [ASSISTANT]}, {},
         ["'rejected'", "as in 'chosen'"]),
        ("chats of two turns", {**COMPARISON, "chosen": [USER, ASSISTANT, USER],
         "rejected": [USER, ASSISTANT, ASSISTANT]}, {}, ["exactly one turn of the assistant"]),
        ("probability above 1", {**COMPARISON, "probability": 1.2}, {},
         ["'probability'", "from 0 to 1", "found 1.2"]),
        ("probability below 0", {**COMPARISON, "probability": -0.1}, {},
         ["'probability'", "0 to 1"]),
        ("probability NaN", {**COMPARISON, "probability": float("nan")}, {}, ["found nan"]),
        ("probability a text", {**COMPARISON, "probability": "0.5"}, {}, ["found '0.5'"]),
        ("probability true", {**COMPARISON, "probability": True}, {}, ["found True"]),
        ("weight negative", {**COMPARISON, "weight": -1}, {}, ["'weight'", "0 or more"]),
        ("weight infinite", {**COMPARISON, "weight": float("inf")}, {}, ["'weight'", "found inf"]),
        ("weight of 400 digits", b'{"prompt": "p", "chosen": "a", "rejected": "b", "weight": 1'
         + b"0" * 400 + b"}", {}, ["'weight'", "a number of 0 or more"]),
        ("one response longer", {**COMPARISON, "rejected": "b" * 30}, {"max_length": 20},
         ["more than max_length=20", "'drop'"]),
    ],
    "dpo": [
        ("no judgment", {"prompt": "p", "responses": ["a", "b"]}, {}, ["'rankings' or 'ratings'"]),
        ("both judgments", {**GROUP, "rankings": [[1, 2]]}, {}, ["either 'rankings' or 'ratings'"]),
        ("one response", {**GROUP, "responses": ["a"]}, {}, ["two responses or more"]),
        ("responses a text", {**GROUP, "responses": "ab"}, {}, ["a list of two responses"]),
        ("responses of numbers", {**GROUP, "responses": [1, 2]}, {}, ["'responses[0]'", "found 1"]),
        ("a null response", {**GROUP, "responses": ["a", None]}, {}, ["'responses[1]'", "None"]),
        ("an empty response", {**GROUP, "responses": ["a", ""]}, {}, ["no text", "'keep'"]),
        ("all equal", {**GROUP, "responses": ["a", "a"]}, {}, ["all responses are the same"]),
        ("a rating NaN", {**GROUP, "ratings": [[1, float("nan")]]}, {}, ["'ratings[0]'", "nan"]),
        ("a rating infinite", {**GROUP, "ratings": [[1, float("-inf")]]}, {}, ["finite", "-inf"]),
        ("a rating a text", {**GROUP, "ratings": [[1, "2"]]}, {}, ["'ratings[0]'", "found '2'"]),
        ("a rating true", {**GROUP, "ratings": [[1, True]]}, {}, ["a finite number", "True"]),
        ("too few ratings", {**GROUP, "ratings": [[1]]}, {}, ["'ratings[0]'", "a list of 2"]),
        ("too many ratings", {**GROUP, "ratings": [[1, 2, 3]]}, {}, ["a list of 2 numbers"]),
        ("ratings of one list", {**GROUP, "ratings": [1, 2]}, {}, ["'ratings[0]'", "found 1"]),
        ("no labeler", {**GROUP, "ratings": []}, {}, ["one labeler or more"]),
        ("ratings a number", {**GROUP, "ratings": 3}, {}, ["'ratings'", "one list a labeler"]),
        ("nobody judged two", {**GROUP, "ratings": [[1, None], [None, 2]]}, {},
         ["no labeler judged two responses", "Leave the row out"]),
        ("rankings of texts", {"prompt": "p", "responses": ["a", "b"], "rankings": [["1", "2"]]},
         {}, ["'rankings[0]'", "a finite number"]),
        ("weight a list", {**GROUP, "weight": [1]}, {}, ["'weight'", "0 or more"]),
    ],
    "ppo": [
        ("no prompt", {"text": "p"}, {}, ["expected 'prompt'", "found the fields: text"]),
        ("prompt too long", {"prompt": "p" * 20}, {"max_prompt_length": 9},
         ["20 tokens, more than max_prompt_length=9", "Raise max_prompt_length", "'drop'"]),
        ("no room in the context", {"prompt": "p" * 128}, {},
         ["128 tokens, more than the model's context of 128", "longer context"]),
        ("a huge prompt", {"prompt": "p" * 300_000}, {}, ["300000 tokens", "1 of 2 prompts"]),
    ],
}  # fmt: skip
CASES = [(phase, *case) for phase in MODULES for case in FILES + OWN[phase]]
# Whole files, as bytes.
WHOLE = [
    ("empty", b"", ["holds no rows"]),
    ("white", b"\n \n\t\n", ["holds no rows"]),
    ("an empty array", b"[]", ["broken", "expected", "holds no rows"]),
    ("not text", bytes(range(128, 256)), [":1: is not UTF-8"]),
    ("a gzip", b"\x1f\x8b\x08\x00", ["is not UTF-8", "save it"]),
]
# (name in the test, source, phrases): sources that are no file of rows.
SOURCES = [
    ("nowhere", "data/nowhere.jsonl", ["no such file or folder", "looked at"]),
    ("no folder", "./none", ["no such file or folder"]),
    ("a text file", "rows.txt", ["a data file ends in .jsonl", "Of a folder that datasets"]),
    ("a pattern", "none/*.jsonl", ["no file fits this pattern"]),
    ("an empty folder", "empty", ["could not be read as a data set"]),
    ("a folder called so", "folder.jsonl", ["could not be read as a data set"]),
    ("a hub name that is none", "owner/none", ["as a hub name", "could not be read"]),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with a model of 128 positions and its tokenizer, a token a character."""
    folder = save_policy(tmp_path_factory.mktemp("policy"))
    for file in folder.glob("*.safetensors"):
        file.unlink()  # data need no weights
    return str(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Let Hugging Face's library prepare its tables in the test's own folder, without bars."""
    import datasets  # noqa: PLC0415 - with the environment of the test

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def message_of(phase, tokenizer, source, **settings):
    """Set a data module up, which must fail; return its one message."""
    data = MODULES[phase](tokenizer, train=str(source), batch_size=1, **settings)
    with pytest.raises(LitRLHFError) as caught:
        data.setup("fit")
    assert isinstance(caught.value, DataError)
    return str(caught.value)


def assert_has(message, phrases):
    assert [phrase for phrase in phrases if phrase not in message] == []
    assert "\n" not in message
    assert len(message) < 600


def as_bytes(row):
    return row if isinstance(row, bytes) else json.dumps(row).encode()


@pytest.mark.parametrize(
    ("phase", "name", "row", "settings", "phrases"),
    CASES,
    ids=[f"{phase}: {name}" for phase, name, *_ in CASES],
)
def test_a_bad_row_is_named_by_file_and_line(
    tmp_path, tokenizer, phase, name, row, settings, phrases
):
    good = GOOD[phase]
    if "id_field" in settings or "columns" in settings:
        good = {**good, "prompt": "p", "ask": "q"}
    file = tmp_path / "rows.jsonl"
    file.write_bytes(as_bytes(good) + b"\n" + as_bytes(row) + b"\n")
    message = message_of(phase, tokenizer, file, **settings)
    assert message.startswith(f"{file}:2: ")
    assert_has(message, phrases)


@pytest.mark.parametrize("phase", MODULES)
@pytest.mark.parametrize(("name", "content", "phrases"), WHOLE, ids=[name for name, *_ in WHOLE])
def test_a_bad_file_is_named(tmp_path, tokenizer, phase, name, content, phrases):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    message = message_of(phase, tokenizer, file)
    assert message.startswith(str(file))
    assert any(phrase in message for phrase in phrases)


@pytest.mark.parametrize(("name", "source", "phrases"), SOURCES, ids=[name for name, *_ in SOURCES])
def test_a_source_that_holds_no_rows_is_named(
    tmp_path, tokenizer, monkeypatch, name, source, phrases
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").write_text("p")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.jsonl").mkdir()
    message = message_of("ppo", tokenizer, source)
    assert source.removeprefix("./") in message
    assert [phrase for phrase in phrases if phrase not in message] == []


def test_a_file_that_cannot_be_read_is_named(tmp_path, tokenizer, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text("")

    plain = type(file).open

    def refuse(self, *args, **kwargs):
        if self == file:
            raise PermissionError(13, "Permission denied")
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(type(file), "open", refuse)
    message = message_of("sft", tokenizer, file)
    assert_has(message, [str(file), "Permission denied", "check its rights"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a byte-order mark", b'\xef\xbb\xbf{"prompt": "p", "response": "r"}\n'),
        ("CRLF", b'{"prompt": "p", "response": "r"}\r\n'),
        ("no last line break", b'{"prompt": "p", "response": "r"}'),
        ("blank lines", b'\n\n{"prompt": "p", "response": "r"}\n\n'),
        ("white space", b'  {"prompt": "p", "response": "r"} \t\n'),
        ("escapes", b'{"prompt": "\\u0070", "response": "\\u0072"}\n'),
        ("a null beside", b'{"prompt": "p", "response": "r", "messages": null}\n'),
        ("ids that are null", b'{"id": null, "prompt": "p", "response": "r"}\n'),
    ],
)
def test_what_is_harmless_is_read_as_meant(tmp_path, tokenizer, name, content):
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes(b'{"prompt": "p", "response": "r"}\n')
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    read = []
    for source in (plain, file):
        data = SFTDataModule(tokenizer, train=str(source), batch_size=1)
        data.setup("fit")
        read.append(list(data.prepared("train")))
    assert read[0] == read[1]
    vocabulary = tiny_tokenizer().get_vocab()
    assert read[0][0].rows[0].input_ids[-3:-1] == [vocabulary["p"], vocabulary["r"]]


def test_settings_that_accept_what_is_refused(tmp_path, tokenizer):
    """Each remedy that a message names works."""
    file = tmp_path / "rows.jsonl"
    rows = [{"id": 1, "prompt": "p", "response": text} for text in ("", "r", "r" * 300)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"empty_responses": "keep", "id_field": None}
    lengths = {}
    for overlong in ("truncate", "drop"):
        data = SFTDataModule(
            tokenizer, train=str(file), batch_size=1, overlong=overlong, **settings
        )
        data.setup("fit")
        lengths[overlong] = [len(example.rows[0].input_ids) for example in data.prepared("train")]
    assert lengths == {"truncate": [2, 3, 128], "drop": [2, 3]}
