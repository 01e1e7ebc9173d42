"""Whatever prompts, lengths and settings: samples fit their masks, and do not see each other."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlhf.batches import PromptBatch, response_window
from lit_rlhf.models import PolicyModel
from lit_rlhf.rollout import Sampling, TorchGenerator, collect_samples
from lit_rlhf.rollout.generation import Generation, join_rows
from tests.models.examples import lively_model
from tests.support.tiny_models import VOCABULARY_SIZE
from tests.support.tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
STOP_IDS = list(range(2, 12))
tokens = st.integers(0, VOCABULARY_SIZE - 1)
prompts = st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=1, max_size=4)


def policy():
    return PolicyModel(lively_model(eos_token_id=STOP_IDS)).eval()


POLICY = policy()


def batch_of(rows, ids=None):
    width = max(map(len, rows))
    return PromptBatch(
        input_ids=torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        lengths=torch.tensor([len(row) for row in rows]),
        prompt_ids=torch.tensor(list(range(len(rows))) if ids is None else ids),
        prompts=[str(row) for row in rows],
        fields=[{}] * len(rows),
    )


def sample(rows, sampling, *, ids=None, max_rows=128, samples=1, seed=0):
    return collect_samples(
        POLICY,
        TorchGenerator(max_rows=max_rows),
        batch_of(rows, ids),
        TOKENIZER,
        sampling,
        samples_per_prompt=samples,
        seed=seed,
    )


@settings(max_examples=25)
@given(
    prompts,
    st.integers(1, 7),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.integers(0, 5),
)
def test_samples_fit_their_masks(rows, max_new_tokens, num_samples, temperature, seed):
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature)
    drawn = sample(rows, sampling, samples=num_samples, seed=seed)
    lengths = drawn.response_mask.sum(1)
    assert len(lengths) == len(rows) * num_samples
    assert lengths.min() >= 1
    assert lengths.max() <= max_new_tokens
    assert (drawn.rows.lengths == drawn.prompt_lengths + lengths).all()
    assert (drawn.rows.response_mask.sum(1) == lengths).all()
    assert (drawn.sampler_logprobs[~drawn.response_mask] == 0).all()
    assert (drawn.sampler_logprobs <= 0).all()
    for index in range(len(lengths)):
        prompt = rows[index // num_samples]
        row = drawn.rows.input_ids[index, : drawn.rows.lengths[index]].tolist()
        response = row[len(prompt) :]
        assert row[: len(prompt)] == prompt
        # A stop token ends a response, and nothing else does before the limit.
        stops = [token in STOP_IDS for token in response]
        assert not any(stops[:-1])
        assert bool(drawn.finished[index]) == stops[-1]
        assert stops[-1] or len(response) == max_new_tokens


@settings(max_examples=25)
@given(prompts, st.integers(1, 3), st.integers(0, 5))
def test_a_sample_does_not_depend_on_who_shares_its_batch(rows, max_rows, seed):
    sampling = Sampling(max_new_tokens=5)
    together = sample(rows, sampling, max_rows=max_rows, seed=seed)
    for index, row in enumerate(rows):
        alone = sample([row], sampling, ids=[index], seed=seed)
        length = int(alone.rows.lengths)
        assert int(together.rows.lengths[index]) == length
        assert (
            together.rows.input_ids[index, :length].tolist()
            == alone.rows.input_ids[0, :length].tolist()
        )


responses = st.lists(st.lists(tokens, min_size=1, max_size=5), min_size=4, max_size=4)


@given(prompts, responses, st.integers(0, 3))
def test_joined_rows_are_prompt_and_response_end_to_end(rows, drawn, num_extra):
    drawn = drawn[: len(rows)]
    width = max(map(len, drawn)) + num_extra
    padded = torch.tensor([row + [7] * (width - len(row)) for row in drawn])
    lengths = torch.tensor([len(row) for row in drawn])
    ended = torch.ones(len(rows), dtype=torch.bool)
    batch = batch_of(rows)
    generation = Generation(padded, lengths, ended, torch.zeros(padded.shape))
    joined = join_rows(batch.input_ids, batch.lengths, generation)
    for index, (prompt, response) in enumerate(zip(rows, drawn, strict=True)):
        assert joined.input_ids[index, : joined.lengths[index]].tolist() == prompt + response
        marked = joined.input_ids[index][joined.response_mask[index]].tolist()
        assert marked == response
    window = response_window(joined.input_ids, batch.lengths, width)
    mask = torch.arange(width) < lengths[:, None]
    assert (window[mask] == padded[mask]).all()
    assert (window[~mask] == 0).all()
