"""The real vLLM on a CPU, in this process and as a server.

It lives in an environment of its own: `make test-vllm` makes that and runs this file there.
"""

import functools
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import pytest
import torch

from lit_rlhf.batches import PromptBatch, response_window
from lit_rlhf.data import PPODataModule
from lit_rlhf.errors import ConfigError
from lit_rlhf.models import LoRAConfig, PolicyModel, apply_lora, load_causal_lm
from lit_rlhf.modules import OptimizerConfig, PPOModule, UpdateConfig
from lit_rlhf.rewards import FunctionReward
from lit_rlhf.rollout import Sampling, TorchGenerator
from lit_rlhf.rollout.generation import decode_tokens, join_rows
from lit_rlhf.rollout.vllm import VLLMGenerator
from tests.models.examples import save_policy, shake
from tests.support.phases import Recorder, phase_trainer, prompts, write_rows
from tests.support.tokenizer import tiny_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-vllm"
    ),
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
]
GREEDY = Sampling(max_new_tokens=12, temperature=0.0)
DRAWN = Sampling(max_new_tokens=12, temperature=0.8)
NO_STOP = [95]
DECODE = functools.partial(decode_tokens, tiny_tokenizer())
# The heads are as wide as vLLM's kernels for CPUs want them; a prompt may be longer than a block
# of its prefix cache (128 tokens).
SHAPE = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # Some tokens end a response, so that their lengths differ.
    path = tmp_path_factory.mktemp("policy")
    return str(save_policy(path, eos_token_id=list(range(2, 9)), **SHAPE))


@pytest.fixture
def policy(folder):
    return PolicyModel(load_causal_lm(folder).eval())


@pytest.fixture(scope="module")
def in_process(folder):
    return VLLMGenerator(dtype="float32", tokenizer=folder, kv_cache_gib=0.0625, enforce_eager=True)


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """Start a server as docs/guides/vllm.md says, and return a generator that talks to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder),
                *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
                *("--load-format", "dummy", "--logprobs-mode", "processed_logprobs"),
                *("--hf-overrides", '{"tie_word_embeddings": false}', "--enforce-eager"),
                *("--kv-cache-memory-bytes", "67108864"),
            ],
            env={**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process, log)
        yield VLLMGenerator(server=address, dtype="float32")
    finally:
        process.terminate()
        process.wait(60)


def wait_for(address, process, log):
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"{address}/health", timeout=1)
        except OSError:
            time.sleep(1)
        else:
            return
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(params=["in_process", "server"])
def generator(request):
    return request.getfixturevalue(request.param)


def prompt_batch(lengths=(4, 1, 7, 140, 5)):
    draw = torch.Generator().manual_seed(0)
    return PromptBatch(
        input_ids=torch.randint(10, 74, (len(lengths), max(lengths)), generator=draw),
        lengths=torch.tensor(lengths),
        prompt_ids=torch.arange(len(lengths)) * 10,
        prompts=[""] * len(lengths),
        fields=[{}] * len(lengths),
    )


def responses(generator, policy, sampling, stop_ids=NO_STOP, **settings):
    generation = generator(policy, prompt_batch(), sampling, stop_ids=stop_ids, **settings)
    lengths = generation.lengths.tolist()
    rows = [row[:n] for row, n in zip(generation.tokens.tolist(), lengths, strict=True)]
    return rows, generation


def assert_same(generator, policy, sampling=GREEDY, **settings):
    """Both engines say the same, and end for the same reason."""
    expected, ours = responses(TorchGenerator(), policy, sampling, **settings)
    actual, theirs = responses(generator, policy, sampling, **settings)
    assert actual == expected
    assert theirs.finished.tolist() == ours.finished.tolist()
    return actual, theirs


def test_greedy_responses_are_those_of_our_engine(generator, policy):
    free, generation = assert_same(generator, policy)
    assert len({token for row in free for token in row}) > 8  # lively enough to tell
    assert not generation.logprobs.any()
    stops = sorted({free[0][2], free[2][-1]})
    _, stopped = assert_same(generator, policy, stop_ids=stops)
    assert 0 < stopped.finished.sum() < 5


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}])
def test_logprobs_are_those_of_the_distribution_that_was_drawn_from(generator, policy, settings):
    sampling = replace(DRAWN, **settings)
    _, generation = responses(generator, policy, sampling, samples_per_prompt=3)
    batch = prompt_batch()
    lengths = batch.lengths.repeat_interleave(3)
    rows = join_rows(batch.input_ids.repeat_interleave(3, 0), lengths, generation)
    with torch.no_grad():
        logits = policy.model(rows.input_ids).logits
    logits = logits / sampling.temperature
    if sampling.top_k:
        least = logits.topk(sampling.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    all_logprobs = logits.log_softmax(-1)[:, :-1].gather(2, rows.input_ids[:, 1:, None])
    expected = response_window(all_logprobs[..., 0], lengths - 1, generation.tokens.shape[1])
    mask = torch.arange(expected.shape[1]) < generation.lengths[:, None]
    torch.testing.assert_close(
        generation.logprobs, expected.masked_fill(~mask, 0), atol=2e-4, rtol=0
    )
    assert generation.logprobs.min() < -0.5


def test_weights_that_change_reach_the_engine(generator, policy):
    before, _ = assert_same(generator, policy)
    shake(policy, seed=1)
    after, _ = assert_same(generator, policy)
    # The prompt of 140 tokens had its keys and values cached under the old weights.
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_adapters_are_merged_and_follow_their_training(generator, folder):
    policy = PolicyModel(apply_lora(load_causal_lm(folder).eval(), LoRAConfig(rank=4)))
    before, _ = assert_same(generator, policy)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.grad = torch.randn_like(parameter) * 0.3
    optimizer.step()
    after, _ = assert_same(generator, policy)
    assert before != after
    with policy.model.disable_adapter():
        assert assert_same(generator, policy)[0] == before


def test_a_seed_names_the_samples(generator, policy):
    settings = {"samples_per_prompt": 4}
    first, _ = responses(generator, policy, DRAWN, seed=7, **settings)
    again, _ = responses(generator, policy, DRAWN, seed=7, **settings)
    other, _ = responses(generator, policy, DRAWN, seed=8, **settings)
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))
    assert len({tuple(row) for row in first}) == 20


def test_a_stop_string_ends_a_response_with_the_token_that_completes_it(generator, policy):
    free, _ = responses(TorchGenerator(), policy, GREEDY)
    (text,) = DECODE([free[0][3:5]])
    sampling = replace(GREEDY, stop_strings=(text,))
    stopped, generation = assert_same(generator, policy, sampling, decode=DECODE)
    assert stopped[0] == free[0][: len(stopped[0])]
    assert len(stopped[0]) <= 5
    assert generation.finished[0]


def test_a_stop_token_is_not_drawn_too_early(generator, policy):
    free, _ = responses(generator, policy, GREEDY)
    sampling = replace(GREEDY, min_new_tokens=6)
    # EOS among them, as the protocol has it: vLLM keeps the model's own EOS back, too.
    stop_ids = [*range(2, 9), free[0][1]]
    rows, _ = assert_same(generator, policy, sampling, stop_ids=stop_ids)
    assert min(map(len, rows)) >= 7
    assert min(map(len, rows)) < 12


def test_a_server_with_other_log_probabilities_is_refused(server, policy, monkeypatch):
    monkeypatch.setattr(
        "lit_rlhf.rollout.vllm.server.ServerEngine._get",
        lambda self, path: {
            "data": [{"id": "m", "max_model_len": 9}],
            "vllm_config": {"model_config": {"logprobs_mode": "raw_logprobs"}},
        },
    )
    with pytest.raises(ConfigError, match="reports raw_logprobs"):
        responses(VLLMGenerator(server=server.server), policy, DRAWN)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)])
def test_ppo_trains_on_what_vllm_draws(generator, folder, tmp_path, lora):
    """Were the weights stale, sampler and trainer would part after the first iteration."""
    module = PPOModule(
        folder,
        FunctionReward("tests.support.toy_rewards.length"),
        optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-3, schedule="constant"),
        update=UpdateConfig(2, sampler_correction_cap=2.0),
        sampling=Sampling(max_new_tokens=6),
        generator=generator,
        lora=lora,
    )
    path = write_rows(tmp_path / "prompts.jsonl", prompts(12))
    recorder = Recorder()
    trainer = phase_trainer(
        tmp_path, limit_train_batches=3, limit_val_batches=0, callbacks=[recorder]
    )
    trainer.fit(module, PPODataModule(folder, train=path, batch_size=4))
    assert max(recorder.values("train/ppo/sampler_difference_max")) < 1e-3
    assert recorder.values("train/ppo/sampler_weight") == pytest.approx([1] * 3, abs=1e-3)
    assert abs(recorder.values("train/ppo/kl")[-1]) > 1e-2  # the policy has moved
