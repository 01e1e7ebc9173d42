import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.data.collation import (
    GroupExample,
    PromptExample,
    collate_groups,
    collate_prompts,
    collate_rows,
    padding_id,
)
from lit_rlhf.data.tokenization import Row
from lit_rlhf.feedback import JudgedPair
from tests.data.word_tokenizer import PAD, word_tokenizer


@st.composite
def rows(draw):
    """One row: tokens that may equal the padding id, and any mask."""
    tokens = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    mask = draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    return Row(tokens, mask)


@st.composite
def groups(draw):
    """Two or three rows and some of their pairs."""
    members = tuple(draw(st.lists(rows(), min_size=2, max_size=3)))
    indices = st.permutations(range(len(members)))
    pair = st.builds(
        lambda order, share, weight: JudgedPair(order[0], order[1], share, weight),
        indices,
        st.sampled_from([0.5, 0.75, 1.0]),
        st.sampled_from([0.0, 1.0, 2.5]),
    )
    return GroupExample(members, tuple(draw(st.lists(pair, max_size=3))))


@given(st.lists(rows(), min_size=1, max_size=5), st.integers(0, 5))
def test_rows_come_back_out_of_the_padding(members, pad_id):
    batch = collate_rows(members, pad_id)
    longest = max(len(row.input_ids) for row in members)
    assert batch.input_ids.shape == batch.response_mask.shape == (len(members), longest)
    assert batch.lengths.tolist() == [len(row.input_ids) for row in members]
    for i, row in enumerate(members):
        length = len(row.input_ids)
        assert batch.input_ids[i, :length].tolist() == row.input_ids
        assert batch.response_mask[i, :length].tolist() == row.response_mask
        assert (batch.input_ids[i, length:] == pad_id).all()
        assert not batch.response_mask[i, length:].any()
    assert batch.num_response_tokens == sum(sum(row.response_mask) for row in members)


def test_types_of_rows():
    batch = collate_rows([Row([1, 2], [False, True])], 0)
    assert [tensor.dtype for tensor in batch] == [torch.int64, torch.int64, torch.bool]


@given(st.lists(groups(), min_size=1, max_size=3))
def test_pairs_point_at_the_rows_that_they_judged(members):
    batch = collate_groups(members, 0)
    flat = [(g, row) for g, group in enumerate(members) for row in group.rows]
    assert batch.group.tolist() == [g for g, _ in flat]
    pairs = [(g, group, pair) for g, group in enumerate(members) for pair in group.pairs]
    assert len(batch.chosen) == len(pairs)
    for m, (g, group, pair) in enumerate(pairs):
        assert flat[batch.chosen[m]] == (g, group.rows[pair.chosen])
        assert flat[batch.rejected[m]] == (g, group.rows[pair.rejected])
        assert batch.probability[m] == pair.probability
        assert batch.weight[m] == pair.weight


def test_types_of_comparisons_even_without_pairs():
    batch = collate_groups([GroupExample((Row([1], [False]),), ())], 0)
    assert [tensor.dtype for tensor in batch[1:]] == [
        torch.int64,
        torch.int64,
        torch.float32,
        torch.float32,
        torch.int64,
        torch.float32,
        torch.float32,
    ]
    assert [len(tensor) for tensor in batch[1:]] == [0, 0, 0, 0, 1, 1, 0]
    assert batch.ratings.isnan().all()


def test_prompts():
    examples = [PromptExample([5], 7, "a", {"x": 1}), PromptExample([5, 6], 3, "b", {})]
    batch = collate_prompts(examples, 9)
    assert batch.input_ids.tolist() == [[5, 9], [5, 6]]
    assert batch.lengths.tolist() == [1, 2]
    assert batch.prompt_ids.tolist() == [7, 3]
    assert list(batch.prompts) == ["a", "b"]
    assert list(batch.fields) == [{"x": 1}, {}]


def test_padding_id():
    assert padding_id(word_tokenizer()) == PAD
    assert padding_id(word_tokenizer(pad_token="</s>")) == 3
    assert padding_id(word_tokenizer(pad_token=None)) == 0
