from unittest import mock

import lightning.pytorch as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from lit_rlhf.errors import ConfigError
from lit_rlhf.models.backbone import transformer_layers
from lit_rlhf.modules.sharding import gathered, shard
from tests.support.phases import phase_trainer
from tests.support.phases import weights as full_weights
from tests.support.tiny_models import CONFIGS, VOCABULARY_SIZE, tiny_model
from tests.support.two_processes import run_in_two_processes

CPU = torch.device("cpu")
NUM_STEPS = 4
BATCH_SIZE = 4  # over all processes


def batches():
    generator = torch.Generator().manual_seed(1)
    shape = (NUM_STEPS, BATCH_SIZE, 12)
    return torch.randint(0, VOCABULARY_SIZE, shape, generator=generator)


def train(model, rank=0, num_processes=1):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    share = BATCH_SIZE // num_processes
    for batch in batches():
        rows = batch[rank * share : (rank + 1) * share]
        logits = model(input_ids=rows).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def with_adapter(model):
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights="gaussian")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return get_peft_model(model, config)


def build(architecture, adapter):
    model = tiny_model(architecture)
    return with_adapter(model) if adapter else model


def train_sharded(architecture, adapter):
    rank = torch.distributed.get_rank()
    model = build(architecture, adapter)
    shard(model, CPU)
    shard(model, CPU)  # a second call changes nothing
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    local = sum(parameter.to_local().numel() for parameter in model.parameters())
    train(model, rank, num_processes=2)
    return local, full_weights(model)


def generate_while_sharded():
    rank = torch.distributed.get_rank()
    model = tiny_model("llama")
    shard(model, CPU)
    num_tokens = (3, 9)[rank]  # the processes do not take the same number of steps
    prompt = batches()[0, :1, :5]
    with torch.no_grad(), gathered(model):
        for _ in range(num_tokens):
            token = model(input_ids=prompt).logits[:, -1:].argmax(-1)
            prompt = torch.cat([prompt, token], dim=1)
    local = [isinstance(parameter, DTensor) for parameter in model.parameters()]
    train(model, rank, num_processes=2)
    return prompt, all(local), full_weights(model)


class Scorer(nn.Module):
    """Uses the root's own parameters in a method that is not `forward`."""

    def __init__(self):
        super().__init__()
        self.policy = tiny_model("llama")
        self.head = nn.Linear(32, 1)

    def score(self, tokens):
        return self.head(self.policy.model(input_ids=tokens).last_hidden_state)


def score_while_sharded():
    torch.manual_seed(5)
    scorer = Scorer()
    shard(scorer, CPU, forward_methods=["score"])
    scores = scorer.score(batches()[0])
    scores.sum().backward()
    return scores.detach(), scorer.head.weight.grad.full_tensor()


def spread_from_16_bits():
    """Return how many layers were whole in float32 at each turn, and the weights afterwards."""
    model = tiny_model("llama").to(torch.bfloat16)
    num_whole = []

    def note_and_shard(module, **options):
        layers = [next(layer.parameters()) for layer in transformer_layers(model)]
        whole = [one for one in layers if not isinstance(one, DTensor)]
        num_whole.append(sum(one.dtype == torch.float32 for one in whole))
        return fully_shard(module, **options)

    with mock.patch("lit_rlhf.modules.sharding.fully_shard", note_and_shard):
        shard(model, CPU, in_float32=True)
    return num_whole, full_weights(model)


def gradient_under_autocast(model, rows):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=rows).logits[:, :-1]
    nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten()).backward()
    gradient = transformer_layers(model)[0].mlp.up_proj.weight.grad
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def gather_layers_in_bf16():
    rank = torch.distributed.get_rank()
    model = tiny_model("llama")
    shard(model, CPU, layer_dtype=torch.bfloat16)
    with torch.no_grad(), gathered(model):
        layers = {weight.dtype for weight in transformer_layers(model)[0].parameters()}
        others = model.model.embed_tokens.weight.dtype
    kept = {weight.dtype for weight in model.parameters()}
    gradient = gradient_under_autocast(model, batches()[0, 2 * rank : 2 * rank + 2])
    return layers, others, kept, gradient


def everything_that_needs_two_processes():
    return {
        "layers in bf16": gather_layers_in_bf16(),
        "16 bits": spread_from_16_bits(),
        "full": train_sharded("llama", adapter=False),
        "adapter": train_sharded("llama", adapter=True),
        "generation": generate_while_sharded(),
        "scores": score_while_sharded(),
    }


@pytest.fixture(scope="module")
def sharded():
    """The results of both processes, which are started once: their imports take the time."""
    return run_in_two_processes(everything_that_needs_two_processes)


@pytest.mark.parametrize("adapter", [False, True])
def test_sharded_training_equals_one_process(sharded, adapter):
    architecture = "llama"
    model = build(architecture, adapter)
    start = full_weights(model)
    train(model)
    expected = full_weights(model)
    total = sum(weight.numel() for weight in expected.values())
    assert max((expected[name] - start[name]).abs().max() for name in expected) > 1e-2
    for local, weights in [results["adapter" if adapter else "full"] for results in sharded]:
        assert abs(local - total / 2) < 0.05 * total
        assert weights.keys() == expected.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=0, msg=name)


def test_a_model_in_16_bits_is_spread_in_float32_layer_by_layer(sharded):
    expected = full_weights(tiny_model("llama").to(torch.bfloat16))
    for num_whole, weights in [results["16 bits"] for results in sharded]:
        assert num_whole == [1, 1, 0]  # two layers, then what is in none
        for name, weight in expected.items():
            assert weights[name].dtype == torch.float32
            assert torch.equal(weights[name], weight.float()), name


def test_layers_are_gathered_in_bf16_and_their_gradients_added_up_in_float32(sharded):
    expected = gradient_under_autocast(tiny_model("llama"), batches()[0])
    for layers, others, kept, gradient in [results["layers in bf16"] for results in sharded]:
        assert layers == {torch.bfloat16}
        assert (others, kept) == (torch.float32, {torch.float32})
        assert (gradient - expected).norm() < 0.05 * expected.norm()
        # Each process has gradients in bf16; their sum, had it been in bf16, would have no more.
        is_exact = gradient.bfloat16().float() == gradient
        assert is_exact.float().mean() < 0.9


def test_gathered_lets_each_process_decode_alone_and_leaves_training_as_it_was(sharded):
    results = [results["generation"] for results in sharded]
    model = tiny_model("llama")
    prompt = batches()[0, :1, :5]
    expected = model.generate(prompt, do_sample=False, max_new_tokens=9, eos_token_id=-1)
    train(model)
    weights = full_weights(model)
    for (tokens, is_sharded_again, sharded_weights), num_tokens in zip(
        results, (3, 9), strict=True
    ):
        assert tokens.tolist() == expected[:, : 5 + num_tokens].tolist()
        assert is_sharded_again
        for name, weight in weights.items():
            torch.testing.assert_close(sharded_weights[name], weight, atol=1e-5, rtol=0)


def test_gathered_passes_an_unsharded_model_through():
    model = tiny_model("llama")
    before = full_weights(model)
    with gathered(model):
        inside = full_weights(model)
    assert all(torch.equal(before[name], inside[name]) for name in before)


def test_other_methods_gather_the_weights_too(sharded):
    results = [results["scores"] for results in sharded]
    torch.manual_seed(5)
    scorer = Scorer()
    scores = scorer.score(batches()[0])
    scores.sum().backward()
    for sharded_scores, gradient in results:
        torch.testing.assert_close(sharded_scores, scores.detach(), atol=1e-5, rtol=0)
        torch.testing.assert_close(gradient, scorer.head.weight.grad, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "adapter"),
    [*((name, False) for name in CONFIGS), ("llama", True), ("qwen2", True), ("gemma2", True)],
)
def test_the_layers_of_every_architecture_are_found(architecture, adapter):
    layers = transformer_layers(build(architecture, adapter))
    assert len(layers) == 2
    assert all(type(layer).__name__.endswith(("Layer", "Block")) for layer in layers)


def test_a_model_without_layers_is_refused():
    with pytest.raises(
        ConfigError, match=r"Linear has no list of layers, which trainer.strategy fsdp2"
    ):
        transformer_layers(nn.Linear(2, 2))


class LanguageModule(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.policy = tiny_model("llama")

    def configure_model(self):
        if self.device_mesh is not None:
            shard(self.policy, CPU)

    def training_step(self, rows, batch_idx):
        logits = self.policy(input_ids=rows).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def train_dataloader(self):
        share = BATCH_SIZE // self.trainer.world_size
        start = self.trainer.global_rank * share
        rows = batches()[:, start : start + share]
        return torch.utils.data.DataLoader(list(rows), batch_size=None, num_workers=0)


class WithReference(LanguageModule):
    """Has a frozen model beside the one that trains, as PPO has."""

    def configure_model(self):
        self.reference = tiny_model("llama", seed=1).requires_grad_(False)
        shard(self.reference, CPU)
        super().configure_model()

    def on_train_end(self):
        self.collected = list(self.trainer.strategy.lightning_module_state_dict())


def collect_for_a_checkpoint(folder):
    module = WithReference()
    phase_trainer(folder, strategy="fsdp2", devices=2, max_steps=1).fit(module)
    return module.collected


def test_a_frozen_model_is_not_collected_for_a_checkpoint(tmp_path):
    first, _ = run_in_two_processes(
        collect_for_a_checkpoint, str(tmp_path), init_process_group=False
    )
    assert first
    assert all(name.startswith("policy.") for name in first)


def fit_with_the_flag(folder):
    trainer = phase_trainer(folder, strategy="fsdp2", devices=2)
    module = LanguageModule()
    trainer.fit(module)
    assert isinstance(module.policy, FSDPModule)
    shares = {"num_replicas": 2, "rank": trainer.global_rank}
    assert trainer.strategy.distributed_sampler_kwargs == shares
    trainer.save_checkpoint(f"{folder}/sharded.ckpt")
    return full_weights(module)


def test_the_flag_shards_and_the_checkpoint_is_an_ordinary_file(tmp_path):
    results = run_in_two_processes(fit_with_the_flag, str(tmp_path), init_process_group=False)
    module = LanguageModule()
    phase_trainer(tmp_path).fit(module)
    expected = full_weights(module)
    saved = torch.load(tmp_path / "sharded.ckpt", weights_only=True)["state_dict"]
    for weights in [*results, saved]:
        for name, weight in expected.items():
            torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=0, msg=name)
