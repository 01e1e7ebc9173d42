import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_rlhf.batches import TokenRows
from lit_rlhf.errors import CheckpointError
from lit_rlhf.models import LoRAConfig, export, load_causal_lm, load_reward_model, load_tokenizer
from tests.models.examples import (
    ARCHITECTURES,
    plain_model,
    save_policy,
    write_policy_checkpoint,
    write_reward_checkpoint,
)
from tests.models.test_handover import (
    IDS,
    left_padding_tokenizer,
    logits,
    trained_policy,
    trained_reward_model,
)
from tests.support.tokenizer import tiny_tokenizer

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_training = pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4)], ids=["full", "lora"])
# Of several lengths; EOS stands within them, too, and closes each of them.
TEXTS = ["hello", "a much longer text", "b<|im_end|>c", "<|im_start|>user\nhi<|im_end|>", ""]


@each_architecture
@each_training
def test_an_exported_policy_gives_the_same_logits(architecture, lora, policy_folders, tmp_path):
    folder = policy_folders(architecture)
    policy = trained_policy(folder, lora, value_head=True)
    path = write_policy_checkpoint(tmp_path / "last.ckpt", policy, folder, lora)
    target = export(str(path), str(tmp_path / "new" / "exported"))
    assert target == tmp_path / "new" / "exported"
    expected = logits(policy.model)
    torch.testing.assert_close(logits(plain_model(target)), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(load_causal_lm(str(target))), logits(load_causal_lm(str(path))))
    assert "lit_rlhf" not in (target / "config.json").read_text()


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_the_output_is_exported_tied_or_untied(is_tied, tmp_path):
    folder = save_policy(tmp_path / "source", tie_word_embeddings=is_tied)
    policy = trained_policy(folder)
    path = write_policy_checkpoint(tmp_path / "last.ckpt", policy, folder)
    exported = plain_model(export(str(path), str(tmp_path / "exported")))
    torch.testing.assert_close(logits(exported), logits(policy.model), rtol=1e-4, atol=1e-4)
    assert exported.config.tie_word_embeddings is is_tied


def test_an_exported_policy_keeps_its_tokenizer(policy_folders, tmp_path):
    folder = policy_folders("llama")
    path = write_policy_checkpoint(tmp_path / "last.ckpt", trained_policy(folder), folder)
    target = export(str(path), str(tmp_path / "exported"))
    exported, original = AutoTokenizer.from_pretrained(target), tiny_tokenizer()
    assert exported("it's a text")["input_ids"] == original("it's a text")["input_ids"]
    assert exported.chat_template == original.chat_template
    assert exported.special_tokens_map == original.special_tokens_map


def exported_reward_model(folder, tmp_path, lora=None):
    reward_model = trained_reward_model(folder, lora)
    path = write_reward_checkpoint(tmp_path / "reward.ckpt", reward_model, folder, lora)
    return reward_model, export(str(path), str(tmp_path / "exported"))


def closed_rows(tokenizer):
    """Return the texts as rows that end with EOS, padded by EOS, as in training."""
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in TEXTS]
    width = max(map(len, ids))
    padded = torch.tensor([row + [tokenizer.eos_token_id] * (width - len(row)) for row in ids])
    lengths = torch.tensor([len(row) for row in ids])
    return TokenRows(padded, lengths, torch.zeros_like(padded, dtype=torch.bool))


def scores_of_transformers(folder, **settings):
    """Score closed texts in one padded batch, as any user of transformers would."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
    texts = [text + tokenizer.eos_token for text in TEXTS]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()
    with torch.no_grad():
        return plain_model(folder, AutoModelForSequenceClassification)(**batch).logits[:, 0]


@each_architecture
@each_training
def test_an_exported_reward_model_gives_the_same_scores(
    architecture, lora, policy_folders, tmp_path
):
    assert tiny_tokenizer().pad_token_id == tiny_tokenizer().eos_token_id  # the trap
    reward_model, target = exported_reward_model(policy_folders(architecture), tmp_path, lora)
    rows = closed_rows(tiny_tokenizer())
    with torch.no_grad():
        raw = reward_model(rows)
        torch.testing.assert_close(scores_of_transformers(target), raw, rtol=1e-4, atol=1e-4)
        ours = load_reward_model(str(target))
        torch.testing.assert_close(
            ours.normalize(ours(rows)), reward_model.normalize(raw), rtol=1e-4, atol=1e-4
        )
    assert raw.std() > 0.1
    assert "lit_rlhf_sdpa" not in (target / "config.json").read_text()


def test_scores_without_padding_apart_from_eos_would_be_wrong(policy_folders, tmp_path):
    # The opposite of the test above: were pad EOS, as in the source, the batch would be misread.
    reward_model, target = exported_reward_model(policy_folders("llama"), tmp_path)
    tokenizer = load_tokenizer(str(target))
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    model = plain_model(target, AutoModelForSequenceClassification)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    rows = closed_rows(tokenizer)
    model.config.pad_token_id = tokenizer.eos_token_id
    with torch.no_grad():
        assert not torch.allclose(model(rows.input_ids).logits[:, 0], reward_model(rows), atol=1e-2)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_reward_folder_pads_on_the_right(architecture, policy_folders, tmp_path):
    folder = save_policy(tmp_path / "source", architecture)
    # As for generation; GPT-2's positions would be shifted.
    tokenizer = left_padding_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    reward_model, target = exported_reward_model(folder, tmp_path)
    with torch.no_grad():
        expected = reward_model(closed_rows(tokenizer))
    torch.testing.assert_close(scores_of_transformers(target), expected, rtol=1e-4, atol=1e-4)


def test_a_pad_token_that_is_apart_is_kept(tmp_path):
    folder = save_policy(tmp_path / "source")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<|im_start|>"
    tokenizer.save_pretrained(folder)
    _, target = exported_reward_model(folder, tmp_path)
    assert load_tokenizer(str(target)).pad_token == "<|im_start|>"


def test_a_tokenizer_with_eos_alone_cannot_pad_a_reward_model(tmp_path):
    folder = save_policy(tmp_path / "source")
    tokenizer = tiny_tokenizer()
    tokenizer.unk_token = tokenizer.bos_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    path = write_reward_checkpoint(tmp_path / "reward.ckpt", trained_reward_model(folder), folder)
    with pytest.raises(CheckpointError, match="no special token besides EOS"):
        export(str(path), str(tmp_path / "exported"))
    assert not (tmp_path / "exported").exists()


def test_nothing_is_overwritten(policy_folders, tmp_path):
    folder = policy_folders("llama")
    path = write_policy_checkpoint(tmp_path / "last.ckpt", trained_policy(folder), folder)
    target = tmp_path / "exported"
    target.mkdir()
    (target / "precious").write_text("work")
    with pytest.raises(CheckpointError, match="exists already"):
        export(str(path), str(target))
    assert [file.name for file in target.iterdir()] == ["precious"]


def test_only_checkpoints_are_exported(policy_folders, tmp_path):
    for source in (str(policy_folders("llama")), str(tmp_path / "none.ckpt")):
        with pytest.raises(CheckpointError):
            export(source, str(tmp_path / "exported"))
    assert not (tmp_path / "exported").exists()


def test_what_a_killed_export_left_is_cleared(policy_folders, tmp_path):
    folder = policy_folders("llama")
    path = write_policy_checkpoint(tmp_path / "last.ckpt", trained_policy(folder), folder)
    (tmp_path / "exported.partial").mkdir()
    (tmp_path / "exported.partial" / "half").write_text("")
    target = export(str(path), str(tmp_path / "exported"))
    assert not (tmp_path / "exported.partial").exists()
    assert not (target / "half").exists()
    assert IDS.shape == (1, 9)
