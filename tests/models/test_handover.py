import json
import os
import shutil

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_rlhf.batches import TokenRows
from lit_rlhf.cpu.attention import ATTENTION_NAME
from lit_rlhf.errors import CheckpointError
from lit_rlhf.models import (
    LoRAConfig,
    PolicyModel,
    ScalarModel,
    apply_lora,
    load_causal_lm,
    load_reward_model,
    load_tokenizer,
    load_trunk,
)
from lit_rlhf.models.card import (
    CARD_KEY,
    is_checkpoint,
    make_card,
    parse_config,
    read_checkpoint,
    resolve_source,
)
from lit_rlhf.models.handover import NORMALIZER_KEY, attention_for
from tests.models.examples import (
    ARCHITECTURES,
    lively_model,
    plain_model,
    random_rows,
    save_policy,
    shake,
    write_policy_checkpoint,
    write_reward_checkpoint,
)
from tests.support.tokenizer import save_tiny_tokenizer, tiny_tokenizer

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
IDS = torch.tensor([[5, 9, 70, 2, 2, 33, 41, 8, 12]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def trained_policy(folder, lora=None, **settings):
    """Return what a phase holds after some steps from `folder`."""
    model = load_causal_lm(str(folder))
    model = model if lora is None else apply_lora(model, lora)
    policy = PolicyModel(model, **settings)
    shake_trained(policy)
    return policy


def trained_reward_model(folder, lora=None, normalizer=(0.7, 2.5)):
    trunk = load_trunk(str(folder))
    reward_model = ScalarModel(trunk if lora is None else apply_lora(trunk, lora))
    shake_trained(reward_model)
    reward_model.set_normalizer(*normalizer)
    return reward_model


def shake_trained(model):
    trained = [value for value in model.parameters() if value.requires_grad]
    shake(nn.ParameterList(trained), seed=5, deviation=0.1)


def rewrite(path, change):
    """Let `change` alter what is in a checkpoint."""
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


@pytest.fixture
def policy_file(policy_folders, tmp_path):
    folder = policy_folders("llama")
    return write_policy_checkpoint(tmp_path / "policy.ckpt", trained_policy(folder), folder)


@pytest.fixture
def reward_file(policy_folders, tmp_path):
    folder = policy_folders("llama")
    return write_reward_checkpoint(tmp_path / "reward.ckpt", trained_reward_model(folder), folder)


# Folders --------------------------------------------------------------------------------------


@each_architecture
def test_a_folder_gives_the_logits_of_transformers(architecture, policy_folders):
    folder = policy_folders(architecture)
    model = load_causal_lm(str(folder))
    torch.testing.assert_close(logits(model), logits(plain_model(folder)), rtol=1e-4, atol=1e-5)
    has_softcap = architecture == "gemma2"  # of the attention logits, which sdpa cannot
    assert model.config._attn_implementation == ("eager" if has_softcap else ATTENTION_NAME)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_become_float32_and_dropout_zero(tmp_path):
    lively_model("gpt2").to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_causal_lm(str(tmp_path)).train()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(logits(model), logits(model.eval()))


def test_a_trunk_is_the_policy_without_its_vocabulary(policy_folders):
    folder = str(policy_folders("llama"))
    with torch.no_grad():
        states = load_trunk(folder)(IDS).last_hidden_state
        expected = load_causal_lm(folder)(IDS, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(states, expected)


def test_missing_models_are_refused_before_any_hub_is_asked(tmp_path):
    for source in (f"{tmp_path}/none", "./none", "a/b/c", "~/no-such-model", "none.ckpt"):
        for load in (load_causal_lm, load_reward_model, load_tokenizer):
            with pytest.raises(CheckpointError, match="no such model folder or checkpoint file"):
                load(source)
    with pytest.raises(CheckpointError, match="no model given"):
        load_causal_lm("")


def test_sources_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_source("~/model") == str(tmp_path / "model")
    assert resolve_source("owner/name") == "owner/name"  # a hub's
    assert is_checkpoint("a/last.ckpt")
    assert not is_checkpoint("owner/name")


def test_an_empty_folder_is_refused(tmp_path):
    for load in (load_causal_lm, load_reward_model, load_tokenizer):
        with pytest.raises(CheckpointError, match=str(tmp_path)):
            load(str(tmp_path))


def test_torn_weights_in_a_folder_are_refused(policy_folders, tmp_path):
    folder = shutil.copytree(policy_folders("llama"), tmp_path / "torn")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="no model could be loaded"):
        load_causal_lm(str(folder))


def test_weights_that_a_folder_lacks_are_not_made_up(tmp_path):
    model = lively_model(tie_word_embeddings=False)
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError, match=r"1 weights are missing, such as \['lm_head.weight"):
        load_causal_lm(str(tmp_path))


def test_a_torn_tokenizer_is_refused(policy_folders, tmp_path):
    folder = shutil.copytree(policy_folders("llama"), tmp_path / "torn")
    (folder / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(CheckpointError, match="no tokenizer could be loaded"):
        load_tokenizer(str(folder))


# Checkpoints ----------------------------------------------------------------------------------


@each_architecture
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_a_checkpoint_gives_the_logits_of_the_policy(architecture, is_tied, tmp_path):
    folder = save_policy(tmp_path / "source", architecture, tie_word_embeddings=is_tied)
    policy = trained_policy(folder, value_head=True)
    path = write_policy_checkpoint(tmp_path / "last.ckpt", policy, folder)
    shutil.rmtree(folder)  # all is in the checkpoint
    loaded = load_causal_lm(str(path))
    assert torch.equal(logits(loaded), logits(policy.model))
    ties = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert ties is is_tied
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert loaded.config._attn_implementation == policy.model.config._attn_implementation


def test_other_models_in_the_checkpoint_are_left_alone(policy_folders, tmp_path):
    folder = policy_folders("llama")
    policy = trained_policy(folder, value_head=True)
    path = write_policy_checkpoint(tmp_path / "ppo.ckpt", policy, folder)

    def add_critic(checkpoint):
        critic = trained_reward_model(folder).state_dict()
        checkpoint["state_dict"].update({f"critic.{name}": critic[name] for name in critic})
        checkpoint["state_dict"]["num_iterations"] = torch.tensor(3)

    assert torch.equal(logits(load_causal_lm(str(rewrite(path, add_critic)))), logits(policy.model))


@each_architecture
def test_an_adapter_is_merged(architecture, policy_folders, tmp_path):
    folder, lora = policy_folders(architecture), LoRAConfig(rank=4)
    policy = trained_policy(folder, lora, value_head=True)
    path = write_policy_checkpoint(tmp_path / "lora.ckpt", policy, folder, lora)
    _, state = read_checkpoint(str(path))
    assert all(".lora_" in name or ".value_head." in name for name in state)
    loaded = load_causal_lm(str(path))
    assert not torch.allclose(logits(loaded), logits(load_causal_lm(str(folder))), atol=0.1)
    torch.testing.assert_close(logits(loaded), logits(policy.model), rtol=1e-4, atol=1e-4)
    assert not [name for name in loaded.state_dict() if "lora" in name or "base_layer" in name]


def test_all_of_a_merged_model_can_train(policy_folders, tmp_path):
    folder, lora = policy_folders("llama"), LoRAConfig(rank=4)
    policy = write_policy_checkpoint(
        tmp_path / "policy.ckpt", trained_policy(folder, lora), folder, lora
    )
    reward = write_reward_checkpoint(
        tmp_path / "reward.ckpt", trained_reward_model(folder, lora), folder, lora
    )
    for model in (load_causal_lm(str(policy)), load_reward_model(str(reward))):
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_on_an_adapter_on_a_checkpoint(policy_folders, tmp_path):
    source, lora = policy_folders("llama"), LoRAConfig(rank=2)
    first = write_policy_checkpoint(tmp_path / "1.ckpt", trained_policy(source), source)
    second = trained_policy(first, lora)
    second_file = write_policy_checkpoint(tmp_path / "2.ckpt", second, first, lora)
    third = trained_policy(second_file, lora)
    third_file = write_policy_checkpoint(tmp_path / "3.ckpt", third, second_file, lora)
    torch.testing.assert_close(
        logits(load_causal_lm(str(third_file))), logits(third.model), rtol=1e-4, atol=1e-4
    )


@each_architecture
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4)], ids=["full", "lora"])
def test_a_reward_checkpoint_gives_the_same_scores(architecture, lora, policy_folders, tmp_path):
    folder = policy_folders(architecture)
    reward_model = trained_reward_model(folder, lora)
    path = write_reward_checkpoint(tmp_path / "reward.ckpt", reward_model, folder, lora)
    loaded = load_reward_model(str(path))
    rows = random_rows([3, 5, 1], [4, 2, 6])
    with torch.no_grad():
        torch.testing.assert_close(loaded(rows), reward_model(rows), rtol=1e-4, atol=1e-4)
    assert (float(loaded.mean), float(loaded.deviation)) == (pytest.approx(0.7), 2.5)


def test_a_reward_model_can_start_from_a_policy_checkpoint(policy_folders, policy_file):
    with torch.no_grad():
        states = load_trunk(str(policy_file))(IDS).last_hidden_state
        expected = trained_policy(policy_folders("llama")).trunk(IDS).last_hidden_state
    assert torch.equal(states, expected)


@each_architecture
def test_configurations_survive_the_card(architecture):
    config = lively_model(architecture).config
    config._attn_implementation = attention_for(config)
    card = make_card("policy", config, tiny_tokenizer(), None, "")
    rebuilt = parse_config(card["config"])
    assert type(rebuilt) is type(config)
    assert rebuilt.to_dict() == config.to_dict()
    assert ATTENTION_NAME not in card["config"]


# Tokenizers -----------------------------------------------------------------------------------

TEXT = "Hello, it's 2 o'clock.\nFine!"
MESSAGES = [{"role": "user", "content": "hi"}]


def left_padding_tokenizer(folder):
    """Return the tokenizer of a folder, made to pad on the left wherever it is saved."""
    return AutoTokenizer.from_pretrained(folder, padding_side="left")


def same_tokenizer(loaded, original):
    assert loaded(TEXT)["input_ids"] == original(TEXT)["input_ids"]
    assert loaded.get_vocab() == original.get_vocab()
    assert loaded.special_tokens_map == original.special_tokens_map
    assert loaded.chat_template == original.chat_template
    assert loaded.padding_side == original.padding_side
    assert loaded.decode(loaded(TEXT)["input_ids"]) == TEXT
    rendered = loaded.apply_chat_template(MESSAGES, tokenize=False)
    return rendered == original.apply_chat_template(MESSAGES, tokenize=False)


def test_the_tokenizer_travels_with_the_checkpoint(policy_file):
    assert same_tokenizer(load_tokenizer(str(policy_file)), tiny_tokenizer())


def test_a_tokenizer_changed_by_its_user_travels_as_it_is(tmp_path, policy_folders):
    folder = shutil.copytree(policy_folders("llama"), tmp_path / "source")
    tokenizer = left_padding_tokenizer(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    templates = {"default": tokenizer.chat_template, "shout": "{{ messages[0].content | upper }}"}
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(folder)
    path = write_policy_checkpoint(tmp_path / "last.ckpt", trained_policy(folder), folder)
    loaded = load_tokenizer(str(path))
    assert same_tokenizer(loaded, tokenizer)
    assert (loaded.pad_token, loaded.padding_side) == ("<pad>", "left")
    assert loaded.apply_chat_template(MESSAGES, chat_template="shout", tokenize=False) == "HI"


@pytest.mark.parametrize("name", ["../escaped.txt", "/{}/escaped.txt", "..", "", "a/b.json"])
def test_a_tokenizer_file_cannot_leave_its_folder(name, policy_file, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    name = name.format(str(tmp_path).strip("/"))
    before = set(os.listdir(tmp_path))

    def plant(checkpoint):
        checkpoint[CARD_KEY]["tokenizer"][name] = "planted"

    with pytest.raises(CheckpointError, match="is no name for a tokenizer's file"):
        load_tokenizer(str(rewrite(policy_file, plant)))
    assert set(os.listdir(tmp_path)) == before


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    lively_model().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))


# What is refused ------------------------------------------------------------------------------


def test_the_wrong_kind_of_checkpoint_is_refused(policy_file, reward_file):
    with pytest.raises(CheckpointError, match="holds a reward model, but a policy model"):
        load_causal_lm(str(reward_file))
    with pytest.raises(CheckpointError, match="holds a policy model, but a reward model"):
        load_reward_model(str(policy_file))


def save_classifier(folder, architecture="llama", **changes):
    config = lively_model(architecture, **changes).config
    model = AutoModelForSequenceClassification.from_config(config)
    shake(model)
    model.save_pretrained(folder)
    save_tiny_tokenizer(folder)
    return model.eval()


def test_the_wrong_kind_of_folder_is_refused(policy_folders, tmp_path):
    with pytest.raises(CheckpointError, match=r"reward model is needed.*LlamaForCausalLM"):
        load_reward_model(str(policy_folders("llama")))
    save_classifier(tmp_path, num_labels=1)
    with pytest.raises(CheckpointError, match="a policy is needed here"):
        load_causal_lm(str(tmp_path))


def test_a_classifier_of_several_classes_is_no_reward_model(tmp_path):
    save_classifier(tmp_path, num_labels=3)
    with pytest.raises(CheckpointError, match="one output, not 3"):
        load_reward_model(str(tmp_path))


@each_architecture
def test_a_reward_folder_of_somebody_else_is_scored_at_the_last_token(architecture, tmp_path):
    classifier = save_classifier(tmp_path, architecture, num_labels=1)
    ours = load_reward_model(str(tmp_path))
    rows = random_rows([5], [4])
    with torch.no_grad():
        expected = classifier(rows.input_ids, attention_mask=torch.ones_like(rows.input_ids))
        torch.testing.assert_close(ours(rows), expected.logits[:, 0], rtol=1e-4, atol=1e-4)
        assert torch.equal(ours.normalize(ours(rows)), ours(rows))


def test_the_normaliser_of_a_folder_is_read(tmp_path):
    save_classifier(tmp_path, num_labels=1)
    config = json.loads((tmp_path / "config.json").read_text())
    config[NORMALIZER_KEY] = {"mean": 1.5, "deviation": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_reward_model(str(tmp_path)).normalize(torch.tensor(2.0)) == 1.0


def test_a_reward_model_whose_head_is_not_linear_is_refused(tmp_path, monkeypatch):
    save_classifier(tmp_path, num_labels=1)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    loaded.score = nn.Sequential(loaded.score)
    monkeypatch.setattr(
        AutoModelForSequenceClassification,
        "from_pretrained",
        lambda *_, **__: (loaded, {"missing_keys": []}),
    )
    with pytest.raises(CheckpointError, match="no linear head named 'score'"):
        load_reward_model(str(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_a_torn_file_is_refused(share, policy_file):
    whole = policy_file.read_bytes()
    policy_file.write_bytes(whole[: int(share * len(whole))])
    for load in (load_causal_lm, load_tokenizer):
        with pytest.raises(CheckpointError, match="torn, or no checkpoint"):
            load(str(policy_file))


class Malice:
    """Would write a file as soon as it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_code_in_a_checkpoint_is_not_run(policy_file, tmp_path):
    checkpoint = torch.load(policy_file, weights_only=True)
    checkpoint["callbacks"] = Malice(str(tmp_path / "harm"))
    torch.save(checkpoint, policy_file)
    for load in (load_causal_lm, load_tokenizer, load_reward_model):
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            load(str(policy_file))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "content",
    [{"state_dict": {}}, {CARD_KEY: {}}, [1, 2], torch.zeros(3)],
    ids=["no card", "no weights", "list", "tensor"],
)
def test_a_foreign_file_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="not written by a lit_rlhf phase"):
        load_causal_lm(str(tmp_path / "foreign.ckpt"))


@pytest.mark.parametrize("change", [{"kind": None}, {"future": 1}])
def test_a_card_of_another_version_is_refused(change, policy_file):
    def alter(checkpoint):
        card = checkpoint[CARD_KEY] | change
        checkpoint[CARD_KEY] = {name: value for name, value in card.items() if value is not None}
        checkpoint[CARD_KEY].setdefault("lora", None)

    with pytest.raises(CheckpointError, match="its model card is of another version"):
        load_causal_lm(str(rewrite(policy_file, alter)))


def without(name):
    return lambda checkpoint: checkpoint["state_dict"].pop(name)


def with_extra(name):
    return lambda checkpoint: checkpoint["state_dict"].update({name: torch.zeros(1)})


def with_other_shape(name):
    return lambda checkpoint: checkpoint["state_dict"].update({name: torch.zeros(3, 3)})


NORM = "policy.model.model.norm.weight"


@pytest.mark.parametrize("change", [without(NORM), with_extra(f"{NORM}2"), with_other_shape(NORM)])
def test_weights_that_do_not_fit_a_policy_are_refused(change, policy_file):
    with pytest.raises(CheckpointError, match="weights do not fit the architecture"):
        load_causal_lm(str(rewrite(policy_file, change)))


def test_an_untied_output_that_is_missing_is_not_made_up(tmp_path):
    folder = save_policy(tmp_path / "source", tie_word_embeddings=False)
    path = write_policy_checkpoint(tmp_path / "last.ckpt", trained_policy(folder), folder)
    with pytest.raises(CheckpointError, match=r"missing \['lm_head.weight'\]"):
        load_causal_lm(str(rewrite(path, without("policy.model.lm_head.weight"))))


def test_a_tied_output_may_be_missing(policy_file):
    expected = logits(load_causal_lm(str(policy_file)))
    path = rewrite(policy_file, without("policy.model.lm_head.weight"))
    assert torch.equal(logits(load_causal_lm(str(path))), expected)


ADAPTER = "policy.model.base_model.model.model.layers.1.mlp.up_proj.lora_B.default.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(ADAPTER), "the adapter lacks"),
        (with_extra(f"{ADAPTER}2"), "weights do not fit the adapter"),
        (with_other_shape(ADAPTER), "weights do not fit the architecture"),
    ],
)
def test_weights_that_do_not_fit_an_adapter_are_refused(change, message, policy_folders, tmp_path):
    folder, lora = policy_folders("llama"), LoRAConfig(rank=4)
    policy = trained_policy(folder, lora)
    path = write_policy_checkpoint(tmp_path / "lora.ckpt", policy, folder, lora)
    with pytest.raises(CheckpointError, match=message):
        load_causal_lm(str(rewrite(path, change)))


@pytest.mark.parametrize(
    "change",
    [
        without("reward_model.head.linear.weight"),
        without("reward_model.mean"),
        with_extra("reward_model.head.more"),
    ],
)
def test_a_reward_checkpoint_without_its_head_is_refused(change, reward_file):
    with pytest.raises(CheckpointError, match=r"expected .*head.linear.weight"):
        load_reward_model(str(rewrite(reward_file, change)))


def test_eos_learns_also_where_it_pads(tmp_path):
    eos = 2
    folder = save_policy(tmp_path / "policy", pad_token_id=eos, eos_token_id=eos)
    reward_model = ScalarModel(load_trunk(str(folder)))
    ids = torch.tensor([[5, 7, 9, eos]])
    mask = torch.tensor([[False, False, True, True]])
    reward_model(TokenRows(ids, torch.tensor([4]), mask)).sum().backward()
    grads = reward_model.backbone.embed_tokens.weight.grad
    assert grads[ids[0]].abs().sum(1).min() > 0
    checkpoint = write_reward_checkpoint(tmp_path / "reward.ckpt", reward_model, folder)
    assert load_reward_model(str(checkpoint)).backbone.embed_tokens.padding_idx is None
