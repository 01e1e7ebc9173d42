"""Graphs of steps without a GPU: a tape records each operation and runs it on the same memory."""

import copy
import logging
from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.utils import import_utils

from lit_rlhf.batches import PromptBatch
from lit_rlhf.models import LoRAConfig, PolicyModel, apply_lora
from lit_rlhf.models.kv_cache import RowCache
from lit_rlhf.rollout import Sampling, TorchGenerator, generation, graphs
from lit_rlhf.rollout.graphs import CUDARecorder, Shape, Steps, agree, recorder_for, shape_of
from tests.models.architecture_table import ARCHITECTURES as ALL_ARCHITECTURES
from tests.models.architecture_table import tiny
from tests.models.examples import random_rows

ARCHITECTURES = ("llama", "qwen3", "gemma2", "gemma3_text", "mistral")
LENGTHS = [9, 3, 14, 5, 11, 2, 7, 8]
CUDA = torch.device("cuda", 0)


def tensors_in(values):
    return [one for one in tree_leaves(values) if isinstance(one, torch.Tensor)]


class Tape(TorchDispatchMode):
    """Does what a CUDA graph does: the same operations on the same memory, and no Python."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            known = {one.untyped_storage().data_ptr() for one in tensors_in((args, kwargs))}
            for old, new in zip(tensors_in(result), tensors_in(again), strict=True):
                if old.untyped_storage().data_ptr() not in known:
                    old.copy_(new)


class Recorder:
    """Counts what is recorded and launched."""

    def __init__(self):
        self.recorded = self.launched = 0

    def __call__(self, run):
        tape = Tape()
        # As in a stream that is recorded: transformers asks its masks for nothing.
        with tape, mock.patch.object(import_utils, "is_cuda_stream_capturing", return_value=True):
            run()
        self.recorded += 1

        def replay():
            self.launched += 1
            tape.replay()

        return replay


@pytest.fixture
def small(monkeypatch):
    """Let shapes be of few rows and columns, and no policy be known as one without graphs."""
    monkeypatch.setattr(graphs, "_COLUMNS", 8)
    monkeypatch.setattr(graphs, "_LEAST_ROWS", 3)
    monkeypatch.setattr(graphs, "_STEPS_BEFORE_RECORDING", 2)
    monkeypatch.setattr(graphs, "_without_graphs", set())


@pytest.fixture
def recorder(small, monkeypatch):
    """Let a CPU record its steps."""
    recorder = Recorder()

    def recorder_here(policy, device):
        return None if policy in graphs._without_graphs else recorder

    monkeypatch.setattr(generation, "recorder_for", recorder_here)
    return recorder


@contextmanager
def path_of_a_gpu():
    names = ("lit_rlhf.models.backbone", "lit_rlhf.models.kv_cache")
    first, second = (mock.patch(f"{name}.waits_for_gpu", return_value=True) for name in names)
    with first, second:
        yield


def policy_of(name="llama", *, lora=False):
    model = copy.deepcopy(tiny(name))
    return PolicyModel(apply_lora(model, LoRAConfig()) if lora else model).eval()


def prompts_of(lengths):
    rows = random_rows(lengths, [0] * len(lengths))
    count = len(lengths)
    return PromptBatch(
        rows.input_ids, rows.lengths, torch.arange(count), [""] * count, [{}] * count
    )


def drawn(policy, *, cuda_graphs, stop_ids=(95,), **limits):
    generator = TorchGenerator(cuda_graphs=cuda_graphs, **limits)
    settings = {"stop_ids": stop_ids, "samples_per_prompt": 2}
    with path_of_a_gpu() if cuda_graphs else nullcontext():
        return generator(policy, prompts_of(LENGTHS), Sampling(40), **settings)


def require_equal(ours, plain, atol=1e-5):
    assert torch.equal(ours.tokens, plain.tokens)
    assert torch.equal(ours.lengths, plain.lengths)
    torch.testing.assert_close(ours.logprobs, plain.logprobs, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whole_responses_are_the_same_while_rows_end_and_others_take_their_places(name, recorder):
    policy = policy_of(name)
    stop_ids = drawn(policy, cuda_graphs=False).tokens.unique()[::7].tolist()
    for limits in ({"max_rows": 6}, {"max_rows": 16}, {"max_cached_tokens": 3 * 60}):
        recorder.launched = recorder.recorded = 0
        plain = drawn(policy, cuda_graphs=False, stop_ids=stop_ids, **limits)
        assert recorder.recorded == 0
        assert len(set(plain.lengths.tolist())) > 3  # rows end at different times
        require_equal(drawn(policy, cuda_graphs=True, stop_ids=stop_ids, **limits), plain)
        # Each once when it is compared; how many there are depends on where rows end.
        assert recorder.launched > recorder.recorded > 0
    assert not graphs._without_graphs


def test_no_graph_outlives_its_rollout_so_that_changed_weights_count(recorder):
    policy = policy_of(lora=True)
    # Without end tokens both rollouts have the same shapes, whatever is drawn.
    first = drawn(policy, cuda_graphs=True, stop_ids=())
    recorded = recorder.recorded
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.1)
    second = drawn(policy, cuda_graphs=True, stop_ids=())
    assert recorder.recorded == 2 * recorded > 2
    assert not torch.equal(first.tokens, second.tokens)
    require_equal(second, drawn(policy, cuda_graphs=False, stop_ids=()))


def test_under_autocast_the_weights_that_it_has_cast_are_read(recorder):
    policy = policy_of()
    with torch.autocast("cpu", torch.bfloat16):
        ours = drawn(policy, cuda_graphs=True)
        plain = drawn(policy, cuda_graphs=False)
    assert recorder.launched > recorder.recorded > 2
    assert not graphs._without_graphs
    same = (ours.tokens == plain.tokens).float().mean()  # bf16 rounds otherwise in other shapes
    assert same > 0.5
    first = ours.logprobs[:, :4] - plain.logprobs[:, :4]
    assert first[ours.tokens[:, :4] == plain.tokens[:, :4]].abs().max() < 0.1


def prefilled(policy, lengths, *, num_rows, num_columns):
    """Return a cache with prompts in it, and what its next step gets."""
    prompts = prompts_of(lengths)
    cache = RowCache(num_rows, num_columns)
    for row, length in enumerate(lengths):
        alone = RowCache(1, length, size=1)
        ids = prompts.input_ids[row : row + 1, :length]
        readable = torch.ones(1, length, dtype=torch.bool)
        policy.next_logits(ids, torch.arange(length)[None], readable, alone)
        alone.advance(length)
        cache.admit(alone, torch.zeros(1, dtype=torch.long))
    return cache, torch.arange(5, 5 + len(lengths)), torch.tensor(lengths)


class Recording(TorchDispatchMode):
    """Refuses copies between the host and a device, which a CUDA stream does not record."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [one for one in (*args, result) if isinstance(one, torch.Tensor)]
        devices = {one.device.type for one in tensors if one.dim() or one is result}
        assert devices <= {"meta"}, f"{func} on {devices}"
        assert func is not torch.ops.aten.lift_fresh.default, "a number of the host"
        self.count += 1
        return result


@pytest.fixture
def recording(monkeypatch):
    """Let transformers take tensors without numbers for those of a stream that is recorded."""
    monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)
    # torch has no autocast for them.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type=None: False)
    return Recording()


def fixed_step_without_numbers(policy, recording):
    cache, _, _ = prefilled(policy, [4, 2], num_rows=3, num_columns=24)
    policy.to("meta")
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.to("meta"), layer.values.to("meta")
    inputs = graphs._Inputs.make(cache, torch.empty(2, 96, device="meta"))
    with recording:
        Steps(policy, cache, None)._fixed(inputs, Shape(3, 0, 16))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", [*ARCHITECTURES, "qwen2", "phi3"])
@torch.no_grad()
def test_a_fixed_step_asks_its_device_for_nothing(name, lora, recording):
    """On meta tensors whatever reads a number fails, as does a shape that depends on numbers."""
    fixed_step_without_numbers(policy_of(name, lora=lora), recording)
    assert recording.count > 50


@torch.no_grad()
def test_a_step_that_asks_for_a_number_is_found(recording):
    policy = policy_of("llama")
    norm = policy.trunk.norm
    norm.forward = lambda hidden: hidden if hidden.sum().item() else -hidden
    with pytest.raises(RuntimeError, match="item"):
        fixed_step_without_numbers(policy, recording)


# Of all architectures that decode by our cache: what they ask for at each step, as it was found.
COUNTS_COLUMNS = {"gpt_neo"}
READS_NUMBERS = {"mpt", "xglm"}
# torch multiplies experts in bf16 alone where there are no numbers; Phi-MoE's make them on a CPU.
OPEN = {"afmoe", "deepseek_v2", "deepseek_v3", "gpt_oss", "granitemoe", "mixtral", "olmoe"}
OPEN |= {"phimoe", "qwen2_moe", "qwen3_moe"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
@torch.no_grad()
def test_every_architecture_by_its_name(name, small, recording):
    policy = policy_of(name)
    if policy.paths.decoding != "own":
        pytest.skip("decodes by transformers")
    found = is_same_when_recorded(policy)
    assert found is (name not in COUNTS_COLUMNS)
    if name not in OPEN:
        with pytest.raises(RuntimeError, match="item") if name in READS_NUMBERS else nullcontext():
            fixed_step_without_numbers(policy, recording)


def is_same_when_recorded(policy):
    """Tell whether recorded steps were taken; they must have the plain logits then."""
    plain, tokens, cached = prefilled(policy, [4, 2], num_rows=3, num_columns=24)
    ours = prefilled(policy, [4, 2], num_rows=3, num_columns=24)[0]
    recorder = Recorder()
    steps = Steps(policy, ours, recorder)
    with path_of_a_gpu():
        for _ in range(18):
            expected = Steps(policy, plain, None)(tokens, cached)
            gap = (steps(tokens, cached) - expected).abs().max()
            assert gap <= 1e-5 * expected.abs().max()
            for cache in (plain, ours):
                cache.advance(1)
            tokens, cached = expected.argmax(-1), cached + 1
    return recorder.recorded == len(steps._graphs) == 3


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
@torch.no_grad()
def test_each_step_has_the_plain_logits_and_rows_not_in_use_stay_numbers(name, small):
    policy, recorder = policy_of(name), Recorder()
    plain, tokens, cached = prefilled(policy, [4, 2], num_rows=7, num_columns=40)
    ours = prefilled(policy, [4, 2], num_rows=7, num_columns=40)[0]
    steps = Steps(policy, ours, recorder)
    for step in range(30):
        expected = Steps(policy, plain, None)(tokens, cached)
        found = steps(tokens, cached)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        for cache in (plain, ours):
            cache.advance(1)
        tokens, cached = expected.argmax(-1), cached + 1
        if step == 20:  # a row ends: the last one takes its place
            assert [cache.keep([1]) for cache in (plain, ours)] == [[1], [1]]
            tokens, cached = tokens[1:], cached[1:]
            for cache in (plain, ours):
                cache.forget_before(int(cached.max()))
    shapes = [tuple(shape) for shape in steps._graphs]
    assert shapes == [(3, 0, 8), (3, 0, 16), (3, 0, 24), (3, 0, 32), (3, 0, 40)]
    assert recorder.launched == 30 - 2 * 5 + 5  # two plain steps of each, and one comparison
    for layer in ours.layers:
        assert layer.keys.isfinite().all()
        assert layer.values.isfinite().all()


def test_shapes_are_few_and_hold_the_window():
    cache = RowCache(500, 1568)
    window, shapes = cache.window, set()
    for size in range(1, 501):
        window.size, window.first, window.end = size, 3 * size, 3 * size + 64
        shape = shape_of(cache)
        assert size <= shape.num_rows <= min(500, max(8, 1.5 * size))
        assert shape.first <= window.first
        assert window.end < shape.stop <= 1568
        assert shape.stop - shape.first <= 64 + 2 * 256
        shapes.add(shape)
    rows = sorted({shape.num_rows for shape in shapes})
    assert rows == [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 500]
    assert len(shapes) < 40


@pytest.mark.parametrize("fault", ["raises", "does not end", "does nothing"])
def test_what_cannot_be_recorded_decodes_plainly_and_says_so_once(
    fault, recorder, caplog, monkeypatch
):
    policy, plain = policy_of(), drawn(policy_of(), cuda_graphs=False)

    tried = []

    def broken(self, run):
        tried.append(run)
        if fault == "does nothing":
            return lambda: None
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        finally:
            if fault == "does not end":
                raise ValueError("capture invalidated")

    monkeypatch.setattr(Recorder, "__call__", broken)
    with caplog.at_level(logging.WARNING):
        found = [drawn(policy, cuda_graphs=True) for _ in range(2)]
    for one in found:
        require_equal(one, plain)
    reason = "RuntimeError: operation not permitted when stream is capturing"
    if fault == "does nothing":
        reason = "their logits are not those of the plain step"
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"decoding goes on without CUDA graphs, more slowly: {reason}"]
    assert policy in graphs._without_graphs
    assert len(tried) == 1


def test_an_architecture_that_counts_columns_is_found_and_decodes_plainly(recorder, caplog):
    policy = policy_of("gpt_neo")  # its local attention takes the last column for the query's
    with caplog.at_level(logging.WARNING):
        ours = drawn(policy, cuda_graphs=True)
    require_equal(ours, drawn(policy, cuda_graphs=False))
    assert "their logits are not those of the plain step" in caplog.text


def test_rounding_agrees_and_one_wrong_row_does_not():
    plain = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) + 30
    assert agree(plain + 0.02 * torch.ones(1000), plain)
    wrong = plain.clone()
    wrong[2] = plain[1]
    assert not agree(wrong, plain)
    assert not agree(torch.full_like(plain, torch.nan), plain)
    broken = plain.clone()
    broken[1] = torch.nan
    assert agree(broken, broken)  # the draw refuses it


def test_only_cuda_records_and_not_what_is_sharded(small, monkeypatch, caplog):
    policy = policy_of()
    assert recorder_for(policy, torch.device("cpu")) is None
    recorder = Recorder()
    monkeypatch.setattr(graphs, "CUDARecorder", lambda device: recorder if device == CUDA else None)
    assert recorder_for(policy, CUDA) is recorder
    monkeypatch.setattr(graphs, "FSDPModule", type(policy.trunk))
    with caplog.at_level(logging.WARNING):
        assert [recorder_for(policy, CUDA) for _ in range(2)] == [None, None]
    assert [record.getMessage() for record in caplog.records] == [
        "decoding goes on without CUDA graphs, more slowly: the hooks of fsdp2 cannot be recorded"
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_is_warmed_up_then_recorded_on_one_stream_that_is_given_back(fails, monkeypatch):
    calls, cuda = [], mock.MagicMock()

    @contextmanager
    def inside(name):
        calls.append(f"enter {name}")
        try:
            yield
        finally:
            calls.append(f"leave {name}")

    @contextmanager
    def graph(graph, *, pool, stream, capture_error_mode):
        assert (pool, stream) == (cuda.graph_pool_handle(), cuda.Stream())
        assert capture_error_mode == "thread_local"
        with inside("graph"):
            yield
        if fails:
            raise RuntimeError("capture invalidated")

    cuda.graph, cuda.stream = graph, lambda stream: inside("stream")
    monkeypatch.setattr(torch, "cuda", cuda)
    recorder = CUDARecorder(CUDA)
    with pytest.raises(RuntimeError, match="invalidated") if fails else nullcontext():
        assert recorder(lambda: calls.append("run")) is cuda.CUDAGraph().replay
    expected = ["enter stream", "run", "enter graph", "run", "leave graph", "leave stream"]
    assert calls == expected
