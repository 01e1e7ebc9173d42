import math

import pytest
import torch

from lit_rlhf.batches import PromptBatch
from lit_rlhf.data import SFTDataModule
from lit_rlhf.models import LoRAConfig, load_causal_lm, load_tokenizer
from lit_rlhf.modules import OptimizerConfig, SFTModule
from lit_rlhf.rollout import Sampling, TorchGenerator, collect_samples
from tests.models.examples import plain_model, response_logprobs
from tests.support.phases import Recorder, demonstrations, phase_trainer, weights, write_rows

FAST = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_fraction=0.0)


@pytest.fixture
def data(tmp_path, policy):
    path = write_rows(tmp_path / "rows.jsonl", demonstrations(7))

    def make(**settings):
        return SFTDataModule(policy, train=path, validation=path, test=path, **settings)

    return make


def expected_nlls(policy):
    """Return the negative log-likelihood of each response token of the data."""
    of_policy, rows = (plain_model(policy), load_tokenizer(policy)), demonstrations(7)
    found = [response_logprobs(*of_policy, row["prompt"], row["response"]) for row in rows]
    return [-logprob for row in found for logprob in row]


@pytest.mark.parametrize("packing_width", [None, 64])
def test_the_loss_is_that_of_response_tokens_by_transformers(policy, data, tmp_path, packing_width):
    recorder = Recorder()
    trainer = phase_trainer(tmp_path, max_steps=1, limit_val_batches=0, callbacks=[recorder])
    trainer.fit(SFTModule(policy, packing_width=packing_width), data(batch_size=7))
    tokens = expected_nlls(policy)
    (loss,) = recorder.values("train/sft/loss")
    assert loss == pytest.approx(sum(tokens) / len(tokens), abs=1e-5)


def test_a_step_is_the_step_of_transformers_own_loss(policy, data, tmp_path):
    """One AdamW step on the mean over response tokens, by transformers' cross-entropy."""
    module = SFTModule(policy, optimizer=FAST)
    trainer = phase_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(module, data(batch_size=7))
    tokenizer, model = load_tokenizer(policy), plain_model(policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0)
    total, count = 0.0, 0
    for row in demonstrations(7):
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = [*tokenizer(row["response"])["input_ids"], tokenizer.eos_token_id]
        labels = torch.tensor([[-100] * len(prompt) + response])
        total = total + model(torch.tensor([prompt + response]), labels=labels).loss * len(response)
        count += len(response)
    (total / count).backward()
    optimizer.step()
    for name, weight in weights(module.policy.model).items():
        # Where the gradient is all but zero, AdamW amplifies its rounding.
        close = (weight - dict(model.named_parameters())[name]).abs() < 1e-5
        assert close.float().mean() > 0.99, name


def test_perplexity_counts_tokens_not_batches(policy, data, tmp_path):
    """Batches of 3, 3 and 1 rows: the mean runs over all response tokens."""
    recorder = Recorder()
    trainer = phase_trainer(tmp_path, callbacks=[recorder])
    trainer.test(SFTModule(policy), data(eval_batch_size=3), verbose=False)
    tokens = expected_nlls(policy)
    mean = sum(tokens) / len(tokens)
    assert recorder.held_out["test/sft/loss"] == pytest.approx(mean, abs=1e-5)
    assert recorder.held_out["test/sft/perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)


def respond(policy_model, tokenizer, prompt):
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    batch = PromptBatch(ids, torch.tensor([ids.shape[1]]), torch.tensor([0]), [prompt], [{}])
    greedy = Sampling(max_new_tokens=12, temperature=0.0)
    return collect_samples(policy_model, TorchGenerator(), batch, tokenizer, greedy)


def test_what_is_learned_ends_with_eos_though_pad_is_eos(policy, data, tmp_path):
    recorder = Recorder()
    module = SFTModule(policy, optimizer=FAST)
    trainer = phase_trainer(tmp_path, max_epochs=40, limit_val_batches=0, callbacks=[recorder])
    trainer.fit(module, data(batch_size=2, limit_train=2))
    losses = recorder.values("train/sft/loss")
    assert losses[0] > 3
    assert losses[-1] < 0.1
    tokenizer = load_tokenizer(policy)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    for row in demonstrations(2):
        samples = respond(module.policy, tokenizer, row["prompt"])
        assert samples.responses == [row["response"]]
        assert samples.finished.tolist() == [True]


def test_a_lora_checkpoint_holds_adapters_alone_and_hands_over(policy, data, tmp_path):
    module = SFTModule(policy, lora=LoRAConfig(rank=2), optimizer=FAST)
    trainer = phase_trainer(tmp_path, max_steps=3, limit_val_batches=0)
    trainer.fit(module, data(batch_size=3))
    path = tmp_path / "policy.ckpt"
    trainer.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert state
    assert all("lora_" in name for name in state)
    before = dict(plain_model(policy).named_parameters())
    for name, weight in module.policy.model.get_base_model().named_parameters():
        if "lora_" not in name:
            torch.testing.assert_close(weight, before[name.replace("base_layer.", "")])
    tokens = torch.tensor([[5, 6, 7, 8]])
    expected = module.policy.model(tokens).logits
    plain = plain_model(policy)(tokens).logits
    module.save_pretrained(tmp_path / "model")
    loaded = load_causal_lm(str(tmp_path / "model"))
    torch.testing.assert_close(loaded(tokens).logits, expected)
    assert (expected - plain).abs().max() > 0.05


def test_a_trained_model_hands_over(policy, data, tmp_path):
    module = SFTModule(policy, optimizer=FAST)
    trainer = phase_trainer(tmp_path, max_steps=2, limit_val_batches=0)
    trainer.fit(module, data(batch_size=3))
    module.save_pretrained(tmp_path / "model")
    tokens = torch.tensor([[5, 6, 7, 8]])
    loaded = load_causal_lm(str(tmp_path / "model"))
    assert torch.equal(loaded(tokens).logits, module.policy.model(tokens).logits)


def test_validation_falls_while_training(policy, data, tmp_path):
    recorder = Recorder()
    module = SFTModule(policy, optimizer=FAST)
    phase_trainer(tmp_path, max_epochs=3, callbacks=[recorder]).fit(module, data(batch_size=2))
    tokens = expected_nlls(policy)
    assert recorder.held_out["val/sft/loss"] < 0.7 * sum(tokens) / len(tokens)
