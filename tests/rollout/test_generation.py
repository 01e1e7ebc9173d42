from dataclasses import replace

import pytest
import torch

from lit_rlhf.batches import PromptBatch, response_window
from lit_rlhf.errors import ConfigError
from lit_rlhf.models import LoRAConfig, PolicyModel, apply_lora
from lit_rlhf.rollout import Generation, Sampling, TorchGenerator
from lit_rlhf.rollout.generation import join_rows
from tests.models.examples import ARCHITECTURES, lively_model, random_rows, shake

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
GREEDY = Sampling(max_new_tokens=9, temperature=0.0)
DRAWN = Sampling(max_new_tokens=9)
NO_STOP = [95]
PROMPT_LENGTHS = [4, 1, 7, 2, 5]


def prompt_batch(lengths=PROMPT_LENGTHS, ids=None, num_extra_columns=0):
    rows = random_rows(list(lengths), [0] * len(lengths), num_extra_columns=num_extra_columns)
    return PromptBatch(
        input_ids=rows.input_ids,
        lengths=rows.lengths,
        prompt_ids=torch.tensor(ids or [10 * n for n in range(len(lengths))]),
        prompts=[""] * len(lengths),
        fields=[{}] * len(lengths),
    )


def pick(prompts, places):
    places = torch.tensor(places)
    return prompts._replace(
        input_ids=prompts.input_ids[places],
        lengths=prompts.lengths[places],
        prompt_ids=prompts.prompt_ids[places],
    )


def generate(policy, prompts, sampling=DRAWN, stop_ids=NO_STOP, max_rows=128, **settings):
    generator = TorchGenerator(max_rows=max_rows)
    return generator(policy, prompts, sampling, stop_ids=stop_ids, **settings)


def responses(generation: Generation):
    lengths = generation.lengths.tolist()
    return [row[:n] for row, n in zip(generation.tokens.tolist(), lengths, strict=True)]


def responses_of_transformers(policy, prompts, stop_ids):
    """Return the greedy response to each prompt, generated alone by transformers."""
    texts = []
    for ids, length in zip(prompts.input_ids, prompts.lengths.tolist(), strict=True):
        whole = policy.model.generate(
            ids[None, :length],
            attention_mask=torch.ones(1, length, dtype=torch.long),
            do_sample=False,
            max_new_tokens=GREEDY.max_new_tokens,
            eos_token_id=stop_ids,
            pad_token_id=0,
        )
        texts.append(whole[0, length:].tolist())
    return texts


@pytest.fixture
def asked(policies, monkeypatch):
    """Return the shape `(rows, columns)` of each forward of the shared Llama, as they come."""
    shapes, policy = [], policies()
    next_logits = policy.next_logits
    monkeypatch.setattr(
        policy,
        "next_logits",
        lambda *inputs: shapes.append(tuple(inputs[0].shape)) or next_logits(*inputs),
    )
    return shapes


def stops_within(free_responses):
    """Pick stop tokens that end some responses early, one at its last step, and others never."""
    return sorted({free_responses[0][2], free_responses[2][-1]})


@each_architecture
def test_greedy_responses_are_those_of_transformers(architecture, policies):
    policy, prompts = policies(architecture), prompt_batch(num_extra_columns=3)
    free = responses(generate(policy, prompts, GREEDY))
    assert free == responses_of_transformers(policy, prompts, NO_STOP)
    assert len({token for response in free for token in response}) > 5  # lively enough to tell
    stop_ids = stops_within(free)
    stopped = generate(policy, prompts, GREEDY, stop_ids)
    assert responses(stopped) == responses_of_transformers(policy, prompts, stop_ids)


def test_no_response_stops_before_its_least_length(policies):
    policy, prompts = policies("llama"), prompt_batch()
    free = responses(generate(policy, prompts, GREEDY))
    stop_ids = sorted({response[0] for response in free})
    assert all(len(row) == 1 for row in responses(generate(policy, prompts, GREEDY, stop_ids)))
    patient = replace(GREEDY, min_new_tokens=4)
    generation = generate(policy, prompts, patient, stop_ids)
    assert int(generation.lengths.min()) > 4
    for row in responses(generation):
        assert not set(row[:4]) & set(stop_ids)


@each_architecture
def test_lengths_and_finished_tell_where_responses_stop(architecture, policies):
    policy, prompts = policies(architecture), prompt_batch()
    free = responses(generate(policy, prompts, GREEDY))
    stop_ids = stops_within(free)
    generation = generate(policy, prompts, GREEDY, stop_ids)
    for row, tokens in enumerate(free):
        stops = [place for place, token in enumerate(tokens) if token in stop_ids]
        assert bool(generation.finished[row]) is bool(stops)
        assert int(generation.lengths[row]) == (stops[0] + 1 if stops else len(tokens))
    assert generation.tokens.shape == (5, 9)
    assert generation.finished.any()


def test_a_stop_at_the_last_step_counts_as_finished(policies):
    policy, prompts = policies(), prompt_batch([4])
    tokens = responses(generate(policy, prompts, GREEDY))[0]
    first = next(n for n, token in enumerate(tokens) if token not in tokens[:n] and n > 0)
    at_the_limit = Sampling(max_new_tokens=first + 1, temperature=0.0)
    generation = generate(policy, prompts, at_the_limit, [tokens[first]])
    assert generation.finished.tolist() == [True]
    assert generation.lengths.tolist() == [first + 1]
    one_short = Sampling(max_new_tokens=first, temperature=0.0)
    generation = generate(policy, prompts, one_short, [tokens[first]])
    assert generation.finished.tolist() == [False]
    assert generation.lengths.tolist() == [first]


def test_decoding_ends_when_all_responses_have(policies, asked):
    generation = generate(policies(), prompt_batch([4, 2]), GREEDY, list(range(96)))
    assert generation.lengths.tolist() == [1, 1]
    assert [rows for rows, _ in asked] == [2]


def test_finished_rows_leave_the_batch(policies, asked):
    policy, prompts = policies(), prompt_batch()
    stop_ids = stops_within(responses(generate(policy, prompts, GREEDY)))
    asked.clear()
    lengths = generate(policy, prompts, GREEDY, stop_ids).lengths
    expected = [int((lengths > step).sum()) for step in range(9)]
    assert [rows for rows, _ in asked] == [size for size in expected if size]


@each_architecture
def test_a_sample_depends_on_its_prompt_and_seed_alone(architecture, policies):
    policy, prompts = policies(architecture), prompt_batch()
    stop_ids = stops_within(responses(generate(policy, prompts)))
    together = responses(generate(policy, prompts, stop_ids=stop_ids, seed=4))
    for places in ([0], [3, 1], [4, 3, 2, 1, 0], [2, 2]):
        some = responses(generate(policy, pick(prompts, places), stop_ids=stop_ids, seed=4))
        assert some == [together[place] for place in places]
    for max_rows in (1, 2, 3):
        turns = generate(policy, prompts, stop_ids=stop_ids, seed=4, max_rows=max_rows)
        assert responses(turns) == together
    assert responses(generate(policy, prompts, stop_ids=stop_ids, seed=5)) != together


def test_equal_prompts_differ_by_their_ids(policies):
    prompts = pick(prompt_batch(), [0, 0, 0])._replace(prompt_ids=torch.tensor([1, 2, 1]))
    first, second, third = responses(generate(policies(), prompts))
    assert first == third != second


@each_architecture
def test_samples_of_a_prompt_stand_together_and_differ(architecture, policies):
    policy, prompts = policies(architecture), prompt_batch()
    drawn = generate(policy, prompts, samples_per_prompt=4, seed=1)
    assert drawn.tokens.shape == (20, 9)
    together = responses(drawn)
    for prompt in range(5):
        alone = generate(policy, pick(prompts, [prompt]), samples_per_prompt=4, seed=1)
        own = together[4 * prompt : 4 * prompt + 4]
        assert own == responses(alone)
        assert len({tuple(response) for response in own}) == 4
    # The first sample is the one that is drawn alone.
    assert together[::4] == responses(generate(policy, prompts, seed=1))
    for max_rows in (1, 4, 9):
        turns = generate(policy, prompts, samples_per_prompt=4, seed=1, max_rows=max_rows)
        assert responses(turns) == together


def test_a_prompt_computed_once_gives_the_samples_of_repeated_prompts(policies, monkeypatch):
    policy, prompts = policies(), prompt_batch()
    once = responses(generate(policy, prompts, samples_per_prompt=3, seed=2))
    repeated = pick(prompts, [place for place in range(5) for _ in range(3)])
    streams = [id_ * 2**20 + sample for id_ in prompts.prompt_ids.tolist() for sample in range(3)]
    monkeypatch.setattr("lit_rlhf.rollout.generation._streams", lambda ids, _: streams)
    assert responses(generate(policy, repeated, seed=2)) == once


@pytest.mark.parametrize("max_rows", [2, 3, 128])
def test_waiting_prompts_take_the_places_of_finished_rows(policies, asked, max_rows):
    policy, prompts = policies(), prompt_batch([4, 1, 7, 2, 5, 3, 6])
    stop_ids = stops_within(responses(generate(policy, prompts, GREEDY)))
    whole = generate(policy, prompts, GREEDY, stop_ids)
    asked.clear()
    turns = generate(policy, prompts, GREEDY, stop_ids, max_rows=max_rows)
    assert responses(turns) == responses(whole)
    decoded = [rows for rows, columns in asked if columns == 1]
    assert max(decoded) == min(max_rows, 7)
    # No row is computed once it has ended: one forward for each token but the last.
    total = int(whole.lengths.sum())
    assert sum(rows for rows, _ in asked) == total
    # With waiting prompts the batch stays full: no more steps than rows could have needed.
    if max_rows == 2:
        assert len(decoded) < total // 2 + GREEDY.max_new_tokens


def test_the_memory_of_the_cache_bounds_the_rows(policies, asked):
    policy, prompts = policies(), prompt_batch()
    whole = responses(generate(policy, prompts, GREEDY))
    asked.clear()
    longest = max(PROMPT_LENGTHS) + GREEDY.max_new_tokens
    generator = TorchGenerator(max_cached_tokens=2 * longest)
    bounded = generator(policy, prompts, GREEDY, stop_ids=NO_STOP)
    assert responses(bounded) == whole
    assert max(rows for rows, _ in asked) == 2


def test_prompts_that_are_computed_together_have_at_most_so_many_tokens(policies, asked):
    policy, prompts = policies(), prompt_batch([9, 5, 4, 4, 2, 1])
    whole = responses(generate(policy, prompts, GREEDY, samples_per_prompt=2))
    asked.clear()
    generator = TorchGenerator(prefill_tokens=8)
    turns = generator(policy, prompts, GREEDY, stop_ids=NO_STOP, samples_per_prompt=2)
    assert responses(turns) == whole
    assert [shape for shape in asked if shape[1] > 1] == [(1, 9), (1, 5), (2, 4), (2, 2)]


@each_architecture
def test_log_probabilities_are_the_policys(architecture, policies):
    policy, prompts = policies(architecture), prompt_batch()
    sampling = Sampling(max_new_tokens=6, temperature=0.8)
    generation = generate(policy, prompts, sampling, samples_per_prompt=2)
    repeated = torch.arange(5).repeat_interleave(2)
    rows = join_rows(prompts.input_ids[repeated], prompts.lengths[repeated], generation)
    with torch.no_grad():
        scored = policy(rows, temperature=0.8).logprobs
    window = response_window(scored, prompts.lengths[repeated], 6)
    torch.testing.assert_close(generation.logprobs, window, rtol=1e-4, atol=1e-4)


def test_a_stop_string_ends_a_response(policies):
    policy, prompts = policies(), prompt_batch()
    free = responses(generate(policy, prompts, GREEDY))
    # Two tokens that follow each other in the first response: "<3><4>" spans both.
    wanted = "".join(f"<{token}>" for token in free[0][2:4])

    def decode(rows):
        return ["".join(f"<{token}>" for token in row) for row in rows]

    sampling = replace(GREEDY, stop_strings=(wanted,))
    generation = generate(policy, prompts, sampling, decode=decode)
    for row, tokens in enumerate(free):
        text = "".join(f"<{token}>" for token in tokens)
        end = next((n for n in range(1, 10) if wanted in decode([tokens[:n]])[0]), 9)
        assert responses(generation)[row] == tokens[:end]
        assert bool(generation.finished[row]) is (wanted in text)
    assert generation.finished[0]
    with pytest.raises(ConfigError, match="stop_strings"):
        generate(policy, prompts, sampling)


def test_drawn_tokens_have_the_probabilities_of_the_policy(policies):
    policy, count = policies(), 3000
    rows = random_rows([4], [0])
    prompts = PromptBatch(
        rows.input_ids.expand(count, -1), rows.lengths.expand(count), torch.arange(count), [], []
    )
    sampling = Sampling(max_new_tokens=1, temperature=1.3)
    tokens = generate(policy, prompts, sampling, max_rows=1000).tokens[:, 0]
    with torch.no_grad():
        expected = count * (policy.model(rows.input_ids).logits[0, -1].double() / 1.3).softmax(-1)
    observed = torch.bincount(tokens, minlength=len(expected)).double()
    is_common = expected >= 5
    rest = torch.stack([observed[~is_common].sum(), expected[~is_common].sum()])
    observed = torch.cat([observed[is_common], rest[:1]])
    expected = torch.cat([expected[is_common], rest[1:]])
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_the_adapter_speaks():
    base = PolicyModel(lively_model())
    adapted = PolicyModel(apply_lora(lively_model(), LoRAConfig(rank=4)))
    prompts = prompt_batch()
    before = responses(generate(base, prompts, GREEDY))
    assert responses(generate(adapted, prompts, GREEDY)) == before
    shake(adapted, seed=2, deviation=0.1)
    after = responses(generate(adapted, prompts, GREEDY))
    assert after != before
    merged = PolicyModel(adapted.model.merge_and_unload())
    assert responses(generate(merged, prompts, GREEDY)) == after


def test_decoding_leaves_no_graph_and_no_trace(policies):
    policy = policies()
    was_training = policy.training
    generation = generate(policy, prompt_batch())
    assert not any(tensor.requires_grad for tensor in generation)
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert policy.training is was_training


def test_under_autocast_weights_are_cast_once_and_forgotten_afterwards(policies, monkeypatch):
    """As Lightning sets it up, autocast would cast every layer for every token."""
    policy = policies()
    states = []
    next_logits = policy.next_logits
    monkeypatch.setattr(
        policy,
        "next_logits",
        lambda *args: states.append(torch.is_autocast_cache_enabled()) or next_logits(*args),
    )
    casting = torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)
    with casting:
        first = responses(generate(policy, prompt_batch(), GREEDY))
        assert not torch.is_autocast_cache_enabled()
        kept = policy.model.lm_head.weight.detach().clone()
        with torch.no_grad():
            policy.model.lm_head.weight.mul_(-1)
        other = responses(generate(policy, prompt_batch(), GREEDY))
        with torch.no_grad():
            policy.model.lm_head.weight.copy_(kept)
        again = responses(generate(policy, prompt_batch(), GREEDY))
    assert states
    assert all(states)
    assert first == again
    assert first != other


def test_a_generator_needs_a_row():
    with pytest.raises(ConfigError, match="max_rows is 0; it must be at least 1"):
        TorchGenerator(max_rows=0)
