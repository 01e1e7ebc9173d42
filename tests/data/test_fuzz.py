"""Whatever is in a file: rows, or one DataError; and whatever the texts, masks and batches fit."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_rlhf.data import DPODataModule, PPODataModule, SFTDataModule
from lit_rlhf.data.chat_template import Piece, RenderedText, Renderer
from lit_rlhf.data.collation import GroupExample, collate_groups, collate_rows, padding_id
from lit_rlhf.data.sources import read_records
from lit_rlhf.data.tokenization import Row, fit_length, tokenize_prompts, tokenize_rows
from lit_rlhf.errors import DataError
from lit_rlhf.feedback import (
    JudgedPair,
    parse_comparison,
    parse_demonstration,
    parse_judged_group,
    parse_judgment,
    parse_prompt,
)
from tests.data.word_tokenizer import word_tokenizer
from tests.support.tokenizer import save_tiny_tokenizer, tiny_tokenizer

TOKENIZERS = {"pad is EOS": tiny_tokenizer(), "pad is not EOS": word_tokenizer()}
# A file in a folder that all examples share is written anew by each.
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

FIELDS = (
    "prompt",
    "response",
    "completion",
    "messages",
    "text",
    "chosen",
    "rejected",
    "responses",
    "ratings",
    "rankings",
    "weight",
    "probability",
    "role",
    "content",
    "id",
)
texts = st.text(max_size=12)
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -1, 0, 0.5])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.sampled_from(["user", "assistant", "\ud83d"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | texts, inner, max_size=4)
    ),
    max_leaves=8,
)
rows = st.dictionaries(st.sampled_from(FIELDS), values, max_size=6)
parsers = st.sampled_from(
    [parse_demonstration, parse_comparison, parse_judged_group, parse_judgment, parse_prompt]
)


def outcome(function):
    """Return what a function returns and None, or None and the message of its `DataError`."""
    try:
        return function(), None
    except DataError as error:
        return None, str(error)


@shared_folder
@given(st.binary(max_size=80) | st.lists(st.binary(max_size=20)).map(b"\n".join))
def test_any_bytes_are_rows_or_one_error_that_names_the_file(tmp_path, content):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    read, message = outcome(lambda: read_records(str(file)))
    if message is None:
        assert all(isinstance(row.record, dict) for row in read)
    else:
        assert message.startswith(str(file))


@shared_folder
@given(rows, st.data())
def test_a_line_that_lost_or_gained_bytes_is_read_or_named(tmp_path, row, data):
    line = json.dumps(row).encode()
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, len(line)))
    changed = line[:start] + data.draw(st.binary(max_size=3)) + line[end:]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(line + b"\n" + changed)
    read, message = outcome(lambda: read_records(str(file)))
    if message is not None:
        assert message.startswith(f"{file}:")
        assert not message.startswith(f"{file}:1:")
    else:
        first, *others = read
        assert str(first.record) == str(json.loads(line))
        assert [other.where for other in others] == [
            f"{file}:{number}"
            for number, text in enumerate(changed.split(b"\n"), start=2)
            if text.strip()
        ]


@settings(max_examples=200)
@given(parsers, rows)
def test_any_row_is_a_record_or_one_error_that_names_the_place(parse, row):
    record, message = outcome(lambda: parse(row, "x.jsonl:7"))
    if message is None:
        assert str(record) == str(parse(row, "elsewhere"))  # fields may hold NaN
    else:
        assert message.startswith("x.jsonl:7: ")


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return str(save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@settings(shared_folder, max_examples=30)
@given(st.sampled_from([SFTDataModule, DPODataModule, PPODataModule]), st.lists(rows, max_size=3))
def test_a_data_module_takes_any_rows_or_raises_one_error(tmp_path, tiny_folder, module_class, row):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in row))
    data = module_class(tiny_folder, train=str(file), batch_size=1)
    _, message = outcome(lambda: data.setup("fit"))
    if message is not None:
        assert message.startswith(str(file))
    else:
        assert len(list(data.train_dataloader())) == len(row)


# Pairs of texts: prompt and response.
pairs = st.tuples(texts, texts)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.lists(pairs, min_size=1, max_size=4), st.booleans())
def test_masks_mark_the_response_and_nothing_else(name, examples, append_eos):
    tokenizer = TOKENIZERS[name]
    rendered = [
        RenderedText((Piece(prompt), Piece(response, ((0, len(response)),))), is_chat=False)
        for prompt, response in examples
    ]
    tokenized = tokenize_rows(tokenizer, rendered, append_eos=append_eos)
    prompts = [prompt for prompt, _ in examples]
    alone = tokenize_prompts(Renderer(tokenizer), prompts, ["x"] * len(prompts))
    for row, (_, response), prompt in zip(tokenized, examples, alone, strict=True):
        bare = list(tokenizer(response, add_special_tokens=False)["input_ids"])
        closing = [] if not append_eos or bare[-1:] == [tokenizer.eos_token_id] else [2, 3]
        marked = [
            token for token, is_in in zip(row.input_ids, row.response_mask, strict=True) if is_in
        ]
        assert marked[: len(bare)] == bare
        assert marked[len(bare) :] in ([], [tokenizer.eos_token_id])
        assert (len(marked) > len(bare)) == bool(closing)
        assert not row.response_mask[0]
        # What the policy is trained to continue is the very prompt that it will meet.
        assert row.input_ids[: len(row.input_ids) - len(marked)] == prompt


rows_of_tokens = st.lists(st.tuples(st.integers(0, 95), st.booleans()), min_size=1, max_size=9).map(
    lambda row: Row([token for token, _ in row], [False] + [is_in for _, is_in in row[1:]])
)


@given(st.lists(rows_of_tokens, min_size=1, max_size=5), st.integers(0, 95))
def test_a_padded_batch_holds_its_rows_and_nothing_else(tokens, pad_id):
    batch = collate_rows(tokens, pad_id)
    assert batch.lengths.tolist() == [len(row.input_ids) for row in tokens]
    assert batch.input_ids.shape == (len(tokens), max(batch.lengths))
    for index, row in enumerate(tokens):
        length = len(row.input_ids)
        assert batch.input_ids[index, :length].tolist() == row.input_ids
        assert batch.response_mask[index, :length].tolist() == row.response_mask
        assert (batch.input_ids[index, length:] == pad_id).all()
        assert not batch.response_mask[index, length:].any()


@given(st.lists(rows_of_tokens, min_size=1, max_size=5), st.integers(1, 9))
def test_rows_are_cut_or_dropped_to_the_limit(tokens, max_length):
    places = [f"x:{index}" for index in range(len(tokens))]
    dropped = fit_length(tokens, places, max_length=max_length, overlong="drop")
    for row, kept in zip(tokens, dropped, strict=True):
        assert kept == (row if len(row.input_ids) <= max_length else None)
    lower = fit_length(tokens, places, max_length=99, overlong="drop", context_length=max_length)
    assert lower == dropped


groups = st.lists(rows_of_tokens, min_size=2, max_size=4).flatmap(
    lambda group: st.lists(
        st.tuples(
            st.integers(0, len(group) - 1),
            st.integers(0, len(group) - 1),
            st.floats(0, 1, width=32),
            st.floats(0, 100, width=32),
        ),
        min_size=1,
        max_size=3,
    ).map(lambda judged: GroupExample(tuple(group), tuple(JudgedPair(*pair) for pair in judged)))
)


@given(st.lists(groups, min_size=1, max_size=4))
def test_pairs_point_at_the_rows_of_their_own_group(examples):
    batch = collate_groups(examples, padding_id(TOKENIZERS["pad is EOS"]))
    judged = [(group, pair) for group in range(len(examples)) for pair in examples[group].pairs]
    assert len(batch.chosen) == len(judged)
    for index, (group, pair) in enumerate(judged):
        for column, place in ((batch.chosen, pair.chosen), (batch.rejected, pair.rejected)):
            row = int(column[index])
            assert int(batch.group[row]) == group
            length = int(batch.rows.lengths[row])
            expected = examples[group].rows[place].input_ids
            assert batch.rows.input_ids[row, :length].tolist() == expected
        assert float(batch.probability[index]) == pair.probability
        assert float(batch.weight[index]) == pair.weight
