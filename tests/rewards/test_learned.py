import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification

from lit_rlhf.batches import TokenRows
from lit_rlhf.errors import CheckpointError, ConfigError, DataError
from lit_rlhf.models import ScalarModel, load_reward_model, load_trunk
from lit_rlhf.models.freezing import freeze
from lit_rlhf.rewards import LearnedReward
from tests.models.examples import (
    save_policy,
    shake,
    write_reward_model,
)
from tests.rewards.samples import sample_batch
from tests.support.tokenizer import tiny_tokenizer

PROMPTS = ["hi", "a rather long prompt, it is", "hi", "well", "no"]
RESPONSES = [" there", "!", " there and so on, and on", "", " no, no"]
SAMPLES = sample_batch(PROMPTS, RESPONSES)
close = {"rtol": 1e-4, "atol": 1e-5}


def save_reward(folder, tokenizer=None):
    """Write a reward checkpoint whose tokenizer is the tiny one or another."""
    source = save_policy(folder / "policy")
    if tokenizer is not None:
        tokenizer.save_pretrained(source)
    reward_model = ScalarModel(load_trunk(str(source)))
    shake(reward_model, seed=4)
    reward_model.set_normalizer(0.3, 1.7)
    return str(write_reward_model(folder / "reward", reward_model, source))


@pytest.fixture(scope="module")
def reward_file(tmp_path_factory):
    return save_reward(tmp_path_factory.mktemp("reward"))


def score(source, prompts=PROMPTS, responses=RESPONSES, **settings):
    return LearnedReward(source, **settings)(prompts, responses, SAMPLES)


def scores_by_hand(source, rows):
    """Score rows of token ids one by one, normalised."""
    model = load_reward_model(source)
    with torch.no_grad():
        scores = [
            model(TokenRows(ids, torch.tensor([ids.shape[1]]), torch.zeros_like(ids, dtype=bool)))
            for ids in (torch.tensor([row]) for row in rows)
        ]
        return (torch.cat(scores) - model.mean) / model.deviation


def closed(tokenizer, prompts=PROMPTS, responses=RESPONSES):
    pairs = zip(prompts, responses, strict=True)
    plain = {"add_special_tokens": False}
    return [
        tokenizer(prompt, **plain)["input_ids"]
        + tokenizer(response, **plain)["input_ids"]
        + [tokenizer.eos_token_id]
        for prompt, response in pairs
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_scores_are_those_of_the_model_in_order(batch_size, reward_file):
    scores = score(reward_file, batch_size=batch_size)
    expected = scores_by_hand(reward_file, closed(tiny_tokenizer()))
    torch.testing.assert_close(scores, expected, **close)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    assert scores.unique().numel() == 5


def test_a_response_is_closed_once_whether_it_was_cut_or_not(reward_file):
    cut = score(reward_file)
    finished = score(reward_file, responses=[response + "<|im_end|>" for response in RESPONSES])
    torch.testing.assert_close(finished, cut, **close)


def test_the_tokens_are_those_of_training_with_a_bos_of_the_tokenizer(tmp_path):
    tokenizer = tiny_tokenizer()
    start, end = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, tokenizer.bos_token_id), (end, tokenizer.eos_token_id)],
    )
    source = save_reward(tmp_path, tokenizer)
    # The last prompt brings its own BOS, as a chat template writes it.
    prompts = [*PROMPTS[:4], start + PROMPTS[4]]
    rows = [[tokenizer.bos_token_id, *row] for row in closed(tokenizer)]
    torch.testing.assert_close(score(source, prompts), scores_by_hand(source, rows), **close)


def test_an_empty_prompt_and_response(reward_file):
    tokenizer = tiny_tokenizer()
    rows = [[tokenizer.bos_token_id, tokenizer.eos_token_id]]
    torch.testing.assert_close(
        score(reward_file, [""], [""]), scores_by_hand(reward_file, rows), **close
    )


def test_no_responses(reward_file):
    assert score(reward_file, [], []).shape == (0,)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_features_are_what_the_head_reads(batch_size, reward_file):
    source = LearnedReward(reward_file, batch_size=batch_size, normalize=False)
    features = source.features(PROMPTS, RESPONSES, torch.device("cpu"))
    model = load_reward_model(reward_file)
    assert features.shape == (5, model.head.linear.in_features)
    torch.testing.assert_close(model.head(features), source(PROMPTS, RESPONSES), **close)


def test_the_model_is_loaded_once_when_it_is_needed(reward_file, monkeypatch):
    loads = []
    load = load_reward_model
    monkeypatch.setattr(
        "lit_rlhf.rewards.learned.load_reward_model",
        lambda source, **options: loads.append(source) or load(source),
    )
    source = LearnedReward(reward_file)
    assert loads == []
    for _ in range(2):
        source(PROMPTS, RESPONSES, SAMPLES)
    assert loads == [reward_file]
    assert source == LearnedReward(reward_file)  # what is loaded is no setting
    assert "_loaded" not in repr(source)


def test_the_model_is_frozen(reward_file):
    source = LearnedReward(reward_file)
    first = source(PROMPTS, RESPONSES, SAMPLES)
    model = source._loaded.model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(source(PROMPTS, RESPONSES, SAMPLES), first)


def test_under_autocast_scores_stay_near_and_in_float32(reward_file):
    source = LearnedReward(reward_file)
    with torch.autocast("cpu", torch.bfloat16):
        scores = source(PROMPTS, RESPONSES, SAMPLES)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, score(reward_file), rtol=0.1, atol=0.1)
    # The same from a caller that is not under autocast, although the layers are bf16 by now.
    assert torch.equal(source(PROMPTS, RESPONSES, SAMPLES), scores)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_under_autocast_a_model_is_read_in_the_bits_it_is_stored_in(stored, tmp_path, reward_file):
    classifier = AutoModelForSequenceClassification.from_pretrained(reward_file, dtype=stored)
    classifier.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    read = load_reward_model(str(tmp_path), keeps_halves=True)
    assert read.backbone.layers[0].mlp.up_proj.weight.dtype == stored
    assert read.head.linear.weight.dtype == torch.float32
    reward = LearnedReward(str(tmp_path))
    with torch.autocast("cpu", torch.bfloat16):
        reward(PROMPTS, RESPONSES, SAMPLES)
    expected = load_reward_model(str(tmp_path))
    freeze(expected.backbone, torch.bfloat16)
    found = reward._loaded.model.state_dict()
    for name, value in expected.state_dict().items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def test_texts_alone_are_enough_and_the_memory_comes_back(reward_file):
    source = LearnedReward(reward_file)
    scores = source(PROMPTS, RESPONSES)
    assert torch.equal(scores, source(PROMPTS, RESPONSES, SAMPLES))
    source.unload()
    assert source._loaded.model is None
    assert torch.equal(source(PROMPTS, RESPONSES), scores)


def test_raw_scores_are_the_models_own(reward_file):
    raw = score(reward_file, normalize=False)
    torch.testing.assert_close(raw, score(reward_file) * 1.7 + 0.3, **close)


def test_what_is_too_long_is_cut_and_counted_or_refused(reward_file):
    source = LearnedReward(reward_file, max_length=16)
    prompts, responses = ["tell me 0", "hi"], ["a" * 5000, "a"]
    scores = source(prompts, responses)
    assert scores.isfinite().all()
    assert source.num_cut == 1
    rows = closed(tiny_tokenizer(), prompts, responses)
    expected = scores_by_hand(reward_file, [row[:16] for row in rows])
    torch.testing.assert_close(scores, expected, **close)
    with pytest.raises(DataError, match="prompt 'tell me 0': the prompt alone fills"):
        score(reward_file, ["tell me 0"], ["a"], max_length=2)
    with pytest.raises(DataError, match=r"prompt 'tell me 0': has .* tokens, more than max_length"):
        score(reward_file, prompts, responses, max_length=16, overlong="error")


def test_a_response_beyond_the_models_context_is_cut(reward_file):
    source = LearnedReward(reward_file)
    assert source(["hi"], ["a" * 5000]).isfinite().all()
    assert source.num_cut == 1


def test_what_cannot_score_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="batch_size is 0; it must be at least 1"):
        LearnedReward("somewhere", batch_size=0)
    with pytest.raises(CheckpointError, match="no such model"):
        score(str(tmp_path / "none"))
    folder = save_policy(tmp_path / "policy")
    with pytest.raises(CheckpointError, match="a reward model is needed"):
        score(str(folder))
