"""What holds without vLLM: weights go when they have changed, answers become a Generation."""

import copy

import pytest
import torch

from lit_rlhf.errors import ConfigError
from lit_rlhf.models import LoRAConfig, PolicyModel, apply_lora
from lit_rlhf.models.weights import note_changed_weights
from lit_rlhf.modules.sharding import gathered, shard
from lit_rlhf.rollout import Sampling
from lit_rlhf.rollout.vllm import VLLMGenerator
from lit_rlhf.rollout.vllm.in_process import InProcessEngine
from lit_rlhf.rollout.vllm.requests import Answer, Engine
from tests.models.examples import lively_model, shake
from tests.rollout.test_generation import prompt_batch
from tests.support.two_processes import run_in_two_processes


class FakeEngine(Engine):
    """Answers with 1 to 3 tokens, and keeps what it was given."""

    max_model_len = 20

    def __init__(self):
        self.loaded = []
        self.asked = []

    def load(self, weights):
        self.loaded.append({name: weight.clone() for name, weight in weights.items()})

    def draw(self, asks, parameters):
        self.asked.append((asks, parameters, torch.is_autocast_enabled("cpu")))
        sizes = [1 + index % 3 for index in range(len(asks))]
        return [Answer([9] * size, [-0.5] * size, size < 3) for size in sizes]


@pytest.fixture
def policy():
    return PolicyModel(lively_model())


@pytest.fixture
def engine():
    return FakeEngine()


def with_engine(engine, **settings):
    generator = VLLMGenerator(**settings)
    generator._slot.engine = engine
    return generator


def call(generator, policy, sampling=None, **settings):
    sampling = sampling or Sampling(max_new_tokens=3)
    return generator(policy, prompt_batch([4, 1]), sampling, stop_ids=[2], **settings)


def test_prompts_travel_without_padding_and_answers_return_with_it(policy, engine):
    generation = call(with_engine(engine), policy, samples_per_prompt=2, seed=5)
    ids = prompt_batch([4, 1]).input_ids
    ((asks, _, _),) = engine.asked
    assert [ask.prompt for ask in asks] == [ids[0].tolist()] * 2 + [ids[1, :1].tolist()] * 2
    assert len({ask.seed for ask in asks}) == 4
    assert generation.tokens.tolist() == [[9, 0, 0], [9, 9, 0], [9, 9, 9], [9, 0, 0]]
    assert generation.lengths.tolist() == [1, 2, 3, 1]
    assert generation.finished.tolist() == [True, True, False, True]
    assert generation.logprobs[2].tolist() == [-0.5] * 3
    assert generation.logprobs[0].tolist() == [-0.5, 0, 0]


class FakeLLM:
    """Keeps what it was told, in order."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        def tell(*args, tags=(), level=None, **_):
            self.told.append((name, *tags) if level is None else (name, level))
            return True

        return tell


def test_an_engine_that_sleeps_takes_weights_before_its_cache(policy):
    engine = InProcessEngine.__new__(InProcessEngine)
    engine._llm, engine._is_asleep, engine.max_model_len = FakeLLM(), False, 20
    engine.draw = lambda asks, parameters: [Answer([9], [-0.5], True) for _ in asks]
    generator = with_engine(engine, sleeps=True)
    call(generator, policy)
    call(generator, policy)
    load = [("collective_rpc",), ("reset_prefix_cache",)]
    woken = [("wake_up", "weights"), load[0], ("wake_up", "kv_cache"), load[1]]
    assert engine._llm.told == [*load, ("sleep", 2), *woken, ("sleep", 2)]


def test_a_server_does_not_sleep():
    with pytest.raises(ConfigError, match="sleeps"):
        VLLMGenerator(server="http://127.0.0.1:8000", sleeps=True)


@pytest.mark.parametrize(("set_by_user", "expected"), [(None, 700), (300, 300)])
def test_the_length_of_the_data_bounds_the_model(policy, monkeypatch, set_by_user, expected):
    options = {}
    monkeypatch.setattr(
        "lit_rlhf.rollout.vllm.generator.InProcessEngine",
        lambda model, tokenizer, given: options.update(given) or FakeEngine(),
    )
    generator = VLLMGenerator(max_model_len=set_by_user)
    generator.expect(700)
    generator.expect(400)
    call(generator, policy)
    assert options["max_model_len"] == expected
    assert "enable_sleep_mode" not in options


def sends_of_a_sharded_policy():
    """Return how often weights go: of two rollouts, one after a step, one after a load."""
    policy, engine = PolicyModel(lively_model()), FakeEngine()
    shard(policy, torch.device("cpu"))
    generator, counts = with_engine(engine), []
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3)
    for change in (None, None, "step", "load"):
        if change == "step":
            optimizer.step()
        elif change == "load":
            note_changed_weights()
        with gathered(policy):
            call(generator, policy)
        counts.append(len(engine.loaded))
    return counts


def test_the_weights_of_a_sharded_policy_go_when_they_have_changed():
    first, second = run_in_two_processes(sends_of_a_sharded_policy)
    assert (first, second) == ([1, 1, 2, 3], [0, 0, 0, 0])


def test_the_likeliest_token_is_not_drawn(policy, engine):
    generation = call(with_engine(engine), policy, Sampling(3, temperature=0.0))
    assert not generation.logprobs.any()


def test_weights_go_when_they_have_changed_and_only_then(policy, engine):
    generator = with_engine(engine)
    call(generator, policy)
    call(generator, policy)
    assert len(engine.loaded) == 1
    shake(policy)
    call(generator, policy)
    assert len(engine.loaded) == 2
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    next(policy.parameters()).grad = torch.ones_like(next(policy.parameters()))
    optimizer.step()
    call(generator, policy)
    assert len(engine.loaded) == 3
    expected = dict(policy.model.named_parameters())
    for name, weight in expected.items():
        assert torch.equal(engine.loaded[-1][name], weight)
    call(generator, PolicyModel(lively_model(seed=1)))
    assert len(engine.loaded) == 4


def test_adapters_that_change_or_are_switched_are_merged_anew(engine):
    policy = PolicyModel(apply_lora(lively_model(), LoRAConfig(rank=2)))
    generator = with_engine(engine)
    call(generator, policy)
    shake(policy.model.base_model)
    call(generator, policy)
    with policy.model.disable_adapter():
        call(generator, policy)
    assert len(engine.loaded) == 3
    merged = copy.deepcopy(policy.model).merge_and_unload()
    for name, weight in merged.named_parameters():
        torch.testing.assert_close(engine.loaded[1][name], weight, atol=1e-5, rtol=0)
    name = "model.layers.0.mlp.up_proj.weight"
    assert (engine.loaded[2][name] - engine.loaded[1][name]).abs().max() > 1e-3


def test_the_trainers_autocast_does_not_reach_the_engine(policy, engine):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        call(with_engine(engine), policy)
    assert engine.asked[0][2] is False


def test_a_response_that_has_no_room_is_refused(policy, engine):
    with pytest.raises(ConfigError, match=r"may need 24 tokens.*room for 20.*max_model_len"):
        call(with_engine(engine), policy, Sampling(max_new_tokens=20))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"server": "localhost:8000"}, r"generator\.server must be an address like http"),
        ({"gpu_memory_utilization": 0.0}, r"gpu_memory_utilization is 0\.0; it must be at most 1"),
        ({"kv_cache_gib": -1.0}, r"generator\.kv_cache_gib is -1\.0; it must be above 0"),
        ({"max_model_len": 0}, r"generator\.max_model_len is 0; it must be at least 1"),
        ({"num_connections": 0}, r"generator\.num_connections is 0; it must be at least 1"),
    ],
)
def test_values_out_of_range_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        VLLMGenerator(**settings)


def test_without_vllm_the_message_says_what_to_install(policy, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"start a server.*generator\.server.*vllm\.md"):
        call(VLLMGenerator(), policy)


def test_several_processes_need_a_server(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"not with 2; start a server"):
        InProcessEngine(lively_model(), None, {})


def test_nobody_at_the_address_is_said(policy):
    with pytest.raises(ConfigError, match=r"no vLLM answers at http://127\.0\.0\.1:9.*DEV_MODE"):
        call(VLLMGenerator(server="http://127.0.0.1:9"), policy)


def test_a_copy_starts_an_engine_of_its_own(engine):
    generator = with_engine(engine, max_model_len=30)
    twin = copy.deepcopy(generator)
    assert twin == generator
    assert twin._slot.engine is None


def loads_of_a_rank():
    """Draw three times; before the last one this rank alone, if it is the second, sees a change."""
    policy, engine = PolicyModel(lively_model()), FakeEngine()
    generator = with_engine(engine)
    call(generator, policy)
    call(generator, policy)
    if torch.distributed.get_rank() == 1:
        shake(policy)
    call(generator, policy)
    return len(engine.loaded), len(engine.asked)


def test_ranks_share_a_server_whose_weights_the_first_one_changes():
    # Sharded weights are gathered at other addresses each time: one rank may see a change alone.
    assert run_in_two_processes(loads_of_a_rank) == [(2, 3), (0, 3)]
