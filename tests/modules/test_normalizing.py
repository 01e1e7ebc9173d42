import pytest
import torch

from lit_rlhf.models import ScalarModel, load_tokenizer, load_trunk
from lit_rlhf.modules import NormalizerConfig
from lit_rlhf.modules.normalizing import draw_reference_samples, refresh_normalizer
from tests.models.examples import random_rows
from tests.support.phases import prompts, write_rows

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path):
    path = write_rows(tmp_path / "prompts.jsonl", prompts(6))
    return NormalizerConfig(path, num_samples=5, max_new_tokens=4)


def test_samples_answer_the_first_prompts_and_end_with_eos(config, policy):
    tokenizer = load_tokenizer(policy)
    rows = draw_reference_samples(config, policy, tokenizer, CPU)
    assert len(rows.lengths) == 5
    for row in range(5):
        length = int(rows.lengths[row])
        tokens = rows.input_ids[row, :length].tolist()
        prompt = tokenizer(prompts(6)[row]["prompt"])["input_ids"]
        assert tokens[: len(prompt)] == prompt
        assert tokens[-1] == tokenizer.eos_token_id
        assert tokens[len(prompt) : -1].count(tokenizer.eos_token_id) == 0
        # Four sampled tokens, of which the last may be EOS; a cut one has it as a fifth.
        assert 1 <= length - len(prompt) <= 5
        expected = [False] * len(prompt) + [True] * (length - len(prompt))
        assert rows.response_mask[row, :length].tolist() == expected
        assert not rows.response_mask[row, length:].any()
    assert (rows.lengths - rows.response_mask.sum(1)).tolist() == [
        len(tokenizer(row["prompt"])["input_ids"]) for row in prompts(5)
    ]


def test_samples_depend_on_the_seed_and_on_nothing_else(config, policy):
    tokenizer = load_tokenizer(policy)
    first = draw_reference_samples(config, policy, tokenizer, CPU)
    torch.manual_seed(123)
    again = draw_reference_samples(config, policy, tokenizer, CPU)
    seeded = NormalizerConfig(config.prompts, num_samples=5, max_new_tokens=4, seed=1)
    other = draw_reference_samples(seeded, policy, tokenizer, CPU)
    assert torch.equal(first.input_ids, again.input_ids)
    assert first.input_ids.tolist() != other.input_ids.tolist()


@pytest.mark.parametrize("batch_size", [2, 64])
def test_scores_of_the_samples_get_mean_zero_and_deviation_one(policy, batch_size):
    reward_model = ScalarModel(load_trunk(policy))
    rows = random_rows([2, 3, 4, 5, 6], [3, 4, 2, 5, 1])
    refresh_normalizer(reward_model, rows, batch_size=batch_size)
    scores = reward_model.normalize(reward_model(rows))
    assert scores.mean().item() == pytest.approx(0, abs=1e-6)
    assert scores.std().item() == pytest.approx(1, abs=1e-6)
    assert not reward_model.mean.requires_grad
