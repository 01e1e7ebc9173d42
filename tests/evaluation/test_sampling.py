"""Sampling from tiny models, against plain transformers and against the scores of training."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_rlhf.errors import ConfigError
from lit_rlhf.evaluation.responses import SourcedPrompt
from lit_rlhf.evaluation.sampling import SamplingConfig, perplexity, sample_responses
from lit_rlhf.models import load_tokenizer
from tests.models.examples import save_policy

PROMPTS = [SourcedPrompt(f"tell me {index}", f"rows:{index}") for index in range(5)]
SETTINGS = SamplingConfig(samples=3, max_new_tokens=6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [str(save_policy(folder / f"p{seed}", seed=seed)) for seed in (1, 2)]


def plain_logprobs(folder, prompt, response_ids, temperature=1.0):
    """Return all log-probabilities at the positions of a response, by transformers itself."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.tensor([prompt + response_ids])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].double()
    return (logits / temperature).log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kl_and_entropy_by_transformers(folders, temperature):
    settings = SamplingConfig(max_new_tokens=3, temperature=temperature)
    prompts = [SourcedPrompt(f"say {index}", "") for index in range(20)]
    responses = sample_responses("p", folders[0], prompts, settings, folders[1])
    tokenizer = load_tokenizer(folders[0])
    checked = 0
    for index, (prompt, _) in enumerate(prompts):
        text = responses.texts[index][0]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if responses.finished[index, 0]:
            ids = [*ids, tokenizer.eos_token_id]
        if len(ids) != responses.tokens.lengths[index, 0]:
            continue  # ids without a text of their own have been drawn
        before = tokenizer(prompt)["input_ids"]
        own, other = (plain_logprobs(f, before, ids, temperature) for f in folders[:2])
        picked = torch.tensor(ids)[:, None]
        kl = (own.gather(1, picked) - other.gather(1, picked)).sum()
        entropy = -(own.exp() * own).sum()
        assert responses.tokens.kl[index, 0] == pytest.approx(float(kl), abs=1e-3)
        assert responses.tokens.summed_entropy[index, 0] == pytest.approx(float(entropy), abs=1e-3)
        checked += 1
    assert checked >= 5


def test_samples_have_their_own_streams_and_lengths(folders):
    first = sample_responses("p", folders[0], PROMPTS, SETTINGS)
    assert first.num_samples == 3
    assert len({text for row in first.texts for text in row}) > 5
    again = sample_responses("p", folders[0], PROMPTS, SETTINGS)
    assert again.texts == first.texts
    # One sample is the first of three, whoever else is drawn.
    one = sample_responses("p", folders[0], PROMPTS[:2], SamplingConfig(max_new_tokens=6))
    assert [row[0] for row in one.texts] == [row[0] for row in first.texts[:2]]
    assert ((first.tokens.lengths == 6) | first.finished).all()
    assert first.tokens.kl is None


def test_the_likeliest_tokens_have_neither_kl_nor_entropy(folders):
    settings = SamplingConfig(max_new_tokens=4, temperature=0.0)
    responses = sample_responses("p", folders[0], PROMPTS[:2], settings, folders[1])
    assert responses.tokens.kl is None
    assert responses.tokens.summed_entropy is None


def test_settings_that_make_no_sense():
    with pytest.raises(ConfigError, match="samples is 0; it must be at least 1"):
        SamplingConfig(samples=0)
    with pytest.raises(ConfigError, match="all samples of a prompt are the same"):
        SamplingConfig(samples=2, temperature=0)


def test_another_vocabulary_has_no_kl(folders, tmp_path):
    other = tmp_path / "other"
    save_policy(other)
    tokenizer = load_tokenizer(str(other))
    tokenizer.add_tokens(["Z?Z"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ConfigError, match="mine: its tokenizer is not that of the reference"):
        sample_responses("mine", folders[0], PROMPTS[:1], SETTINGS, str(other))


def test_perplexity_by_transformers(folders, tmp_path):
    rows = [{"prompt": "say ", "response": "yes"}, {"text": "no, never"}] * 3
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    estimate = perplexity(folders[0], str(data), SamplingConfig(), 64)
    tokenizer = load_tokenizer(folders[0])
    total, count = 0.0, 0
    for prompt, text in (("say ", "yes"), ("", "no, never")):
        before = tokenizer(prompt)["input_ids"] if prompt else [tokenizer.bos_token_id]
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        logprobs = plain_logprobs(folders[0], before, ids)
        total -= float(logprobs.gather(1, torch.tensor(ids)[:, None]).sum())
        count += len(ids)
    assert estimate.value == pytest.approx(math.exp(total / count), rel=1e-4)
    assert estimate.low < estimate.value < estimate.high
    assert estimate.n == 6
