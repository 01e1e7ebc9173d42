import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_rlhf.batches import TokenRows
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
from lit_rlhf.models.handover import (
    check_kind,
    context_length,
    first_context_length,
    resolve_source,
)
from lit_rlhf.models.saving import load_saved_weights, new_folder
from tests.models.examples import (
    ARCHITECTURES,
    lively_model,
    plain_model,
    random_rows,
    save_policy,
    shake,
    write_policy,
    write_reward_model,
)
from tests.support.tokenizer import save_tiny_tokenizer, tiny_tokenizer

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
LORA = LoRAConfig(rank=4)
each_training = pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
IDS = torch.tensor([[5, 9, 70, 2, 2, 33, 41, 8, 12]])
# Of several lengths; EOS stands within them, too, and closes each of them.
TEXTS = ["hello", "a much longer text", "b<|im_end|>c", "<|im_start|>user\nhi<|im_end|>", ""]


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


# Folders --------------------------------------------------------------------------------------


@each_architecture
def test_a_folder_gives_the_logits_of_transformers(architecture, policy_folders):
    folder = policy_folders(architecture)
    model = load_causal_lm(str(folder))
    torch.testing.assert_close(logits(model), logits(plain_model(folder)), rtol=1e-4, atol=1e-5)
    has_softcap = architecture == "gemma2"  # of the attention logits, which sdpa cannot
    assert model.config._attn_implementation == ("eager" if has_softcap else "sdpa")
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
    for source in (f"{tmp_path}/none", "./none", "a/b/c", "~/no-such-model"):
        for load in (load_causal_lm, load_reward_model, load_tokenizer):
            with pytest.raises(CheckpointError, match="no such model folder"):
                load(source)
    with pytest.raises(CheckpointError, match="no model given"):
        load_causal_lm("")


def test_sources_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_source("~/model") == str(tmp_path / "model")
    assert resolve_source("owner/name") == "owner/name"  # a hub's


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


def test_layers_that_the_configuration_does_not_name_are_not_dropped(tmp_path):
    lively_model(num_hidden_layers=3).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    settings = json.loads(file.read_text())
    names = {"num_hidden_layers": 2, "layer_types": None}
    file.write_text(json.dumps({**settings, **names}))
    with pytest.raises(CheckpointError, match=r"fewer layers .* such as \['model.layers.2"):
        load_causal_lm(str(tmp_path))


@pytest.mark.parametrize(
    ("rope", "first"),
    [
        ({"rope_type": "default"}, None),
        ({"rope_type": "yarn", "factor": 4.0}, None),
        ({"rope_type": "dynamic", "factor": 4.0}, 64),
        ({"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 16}, 16),
    ],
)
def test_the_length_from_which_on_rotations_change(policy_folders, tmp_path, rope, first):
    folder = shutil.copytree(policy_folders("llama"), tmp_path / "model")
    file = folder / "config.json"
    settings = {"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 10000.0, **rope}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    assert first_context_length(str(folder)) == first


def test_a_torn_tokenizer_is_refused(policy_folders, tmp_path):
    folder = shutil.copytree(policy_folders("llama"), tmp_path / "torn")
    (folder / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(CheckpointError, match="no tokenizer could be loaded"):
        load_tokenizer(str(folder))


# What a phase leaves --------------------------------------------------------------------------


@each_architecture
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_a_policys_folder_is_read_by_transformers(architecture, is_tied, tmp_path):
    base = save_policy(tmp_path / "source", architecture, tie_word_embeddings=is_tied)
    policy = trained_policy(base, value_head=True)
    folder = write_policy(tmp_path / "new" / "model", policy, base)
    shutil.rmtree(base)  # all is in the folder
    plain, loaded = plain_model(folder), load_causal_lm(str(folder))
    torch.testing.assert_close(logits(plain), logits(policy.model), rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(loaded), logits(policy.model))
    assert plain.config.tie_word_embeddings is is_tied
    ties = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert ties is is_tied
    settings = (folder / "config.json").read_text()
    assert "lit_rlhf" not in settings
    assert "sdpa" not in settings


@each_architecture
def test_adapters_are_written_as_peft_does(architecture, policy_folders, tmp_path, monkeypatch):
    base = policy_folders(architecture)
    policy = trained_policy(base, LORA, value_head=True)
    monkeypatch.chdir(base.parent)
    folder = write_policy(tmp_path / "model", policy, Path(base.name))
    monkeypatch.chdir(tmp_path)  # the base is found from elsewhere
    assert {file.name for file in folder.glob("*.safetensors")} == {"adapter_model.safetensors"}
    theirs = AutoPeftModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    torch.testing.assert_close(logits(theirs), logits(policy.model), rtol=1e-4, atol=1e-5)
    loaded = load_causal_lm(str(folder))
    assert not torch.allclose(logits(loaded), logits(load_causal_lm(str(base))), atol=0.1)
    torch.testing.assert_close(logits(loaded), logits(policy.model), rtol=1e-4, atol=1e-4)
    assert not [name for name in loaded.state_dict() if "lora" in name or "base_layer" in name]
    assert context_length(str(folder)) == context_length(str(base))


@each_architecture
def test_adapters_are_merged_where_one_asks(architecture, policy_folders, tmp_path):
    base = policy_folders(architecture)
    policy = trained_policy(base, LORA)
    folder = write_policy(tmp_path / "model", policy, base, merge=True)
    assert not (folder / "adapter_config.json").exists()
    torch.testing.assert_close(
        logits(plain_model(folder)), logits(policy.model), rtol=1e-4, atol=1e-4
    )


def test_adapters_on_a_folder_of_adapters_are_merged(policy_folders, tmp_path):
    base = policy_folders("llama")
    first = write_policy(tmp_path / "first", trained_policy(base, LORA), base)
    second = trained_policy(first, LORA)
    folder = write_policy(tmp_path / "second", second, first)
    torch.testing.assert_close(
        logits(plain_model(folder)), logits(second.model), rtol=1e-4, atol=1e-4
    )
    reward_model = trained_reward_model(first, LORA)
    scored = write_reward_model(tmp_path / "reward", reward_model, first)
    rows = random_rows([3, 5, 1], [4, 2, 6])
    with torch.no_grad():
        expected = reward_model(rows)
        torch.testing.assert_close(
            load_reward_model(str(scored))(rows), expected, atol=1e-4, rtol=0
        )
    assert not (scored / "adapter_config.json").exists()


def test_merging_takes_the_weights_of_the_folder_not_the_rounded_ones(policy_folders, tmp_path):
    base = policy_folders("llama")
    policy = trained_policy(base, LORA)
    for name, value in policy.named_parameters():
        if "lora_" not in name:
            value.data = value.data.bfloat16().float()  # as a run in bf16-mixed holds them
    folder = write_policy(tmp_path / "model", policy, base, merge=True)
    name = "model.norm.weight"  # without an adapter
    own, merged = (load_file(one / "model.safetensors")[name] for one in (base, folder))
    assert torch.equal(own, merged)


def test_all_of_a_merged_model_can_train(policy_folders, tmp_path):
    base = policy_folders("llama")
    policy = write_policy(tmp_path / "policy", trained_policy(base, LORA), base)
    reward = write_reward_model(tmp_path / "reward", trained_reward_model(base, LORA), base)
    for model in (load_causal_lm(str(policy)), load_reward_model(str(reward))):
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_saved_weights_are_put_back(lora, policy_folders, tmp_path):
    base = policy_folders("llama")
    policy = trained_policy(base, lora)
    expected = logits(policy.model)
    folder = write_policy(tmp_path / "model", policy, base)
    shake_trained(policy)
    assert not torch.allclose(logits(policy.model), expected, atol=1e-3)
    load_saved_weights(policy, folder)
    assert torch.equal(logits(policy.model), expected)


def closed_rows(tokenizer):
    """Return the texts as rows that end with EOS, padded by EOS, as in training."""
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in TEXTS]
    width = max(map(len, ids))
    padded = torch.tensor([row + [tokenizer.eos_token_id] * (width - len(row)) for row in ids])
    lengths = torch.tensor([len(row) for row in ids])
    return TokenRows(padded, lengths, torch.zeros_like(padded, dtype=torch.bool))


def scores_of_transformers(folder, model=None):
    """Score closed texts in one padded batch, as any user of transformers would."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [text + tokenizer.eos_token for text in TEXTS]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()
    with torch.no_grad():
        model = model or plain_model(folder, AutoModelForSequenceClassification)
        return model(**batch).logits[:, 0]


@each_architecture
@pytest.mark.parametrize("training", ["full", "lora", "merged"])
def test_a_reward_models_folder_is_read_by_transformers(
    architecture, training, policy_folders, tmp_path
):
    assert tiny_tokenizer().pad_token_id == tiny_tokenizer().eos_token_id  # the trap
    base, lora = policy_folders(architecture), None if training == "full" else LORA
    reward_model = trained_reward_model(base, lora)
    folder = tmp_path / "model"
    write_reward_model(folder, reward_model, base, merge=training == "merged")
    theirs = None
    if training == "lora":
        theirs = AutoPeftModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, attn_implementation="eager"
        ).eval()
        theirs.config.pad_token_id = AutoTokenizer.from_pretrained(folder).pad_token_id
    rows = closed_rows(tiny_tokenizer())
    with torch.no_grad():
        raw = reward_model(rows)
        scores = scores_of_transformers(folder, theirs)
        torch.testing.assert_close(scores, raw, rtol=1e-4, atol=2e-5)
        for merge in (True, False):
            ours = load_reward_model(str(folder), merge=merge)
            torch.testing.assert_close(ours(rows), raw, rtol=1e-4, atol=1e-4)
            assert (float(ours.mean), float(ours.deviation)) == (pytest.approx(0.7), 2.5)
    assert raw.std() > 0.1
    assert "sdpa" not in (folder / "config.json").read_text()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_reward_folder_pads_on_the_right(architecture, tmp_path):
    base = save_policy(tmp_path / "source", architecture)
    # As for generation; GPT-2's positions would be shifted.
    tokenizer = left_padding_tokenizer(base)
    tokenizer.save_pretrained(base)
    reward_model = trained_reward_model(base)
    folder = write_reward_model(tmp_path / "model", reward_model, base)
    with torch.no_grad():
        expected = reward_model(closed_rows(tokenizer))
    torch.testing.assert_close(scores_of_transformers(folder), expected, rtol=1e-4, atol=1e-4)


def test_a_pad_token_that_is_apart_is_kept(tmp_path):
    base = save_policy(tmp_path / "source")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<|im_start|>"
    tokenizer.save_pretrained(base)
    folder = write_reward_model(tmp_path / "model", trained_reward_model(base), base)
    assert load_tokenizer(str(folder)).pad_token == "<|im_start|>"


def test_a_tokenizer_with_eos_alone_cannot_pad_a_reward_model(tmp_path):
    base = save_policy(tmp_path / "source")
    tokenizer = tiny_tokenizer()
    tokenizer.unk_token = tokenizer.bos_token = tokenizer.eos_token
    tokenizer.save_pretrained(base)
    with pytest.raises(CheckpointError, match="no special token besides EOS"):
        write_reward_model(tmp_path / "model", trained_reward_model(base), base)
    assert not (tmp_path / "model").exists()


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


def test_the_tokenizer_is_in_the_folder(policy_folders, tmp_path):
    folder = policy_folders("llama")
    target = write_policy(tmp_path / "model", trained_policy(folder), folder)
    assert same_tokenizer(load_tokenizer(str(target)), tiny_tokenizer())
    assert same_tokenizer(AutoTokenizer.from_pretrained(target), tiny_tokenizer())


def test_a_tokenizer_changed_by_its_user_travels_as_it_is(tmp_path, policy_folders):
    folder = shutil.copytree(policy_folders("llama"), tmp_path / "source")
    tokenizer = left_padding_tokenizer(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    templates = {"default": tokenizer.chat_template, "shout": "{{ messages[0].content | upper }}"}
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(folder)
    path = write_policy(tmp_path / "model", trained_policy(folder), folder)
    loaded = load_tokenizer(str(path))
    assert same_tokenizer(loaded, tokenizer)
    assert (loaded.pad_token, loaded.padding_side) == ("<pad>", "left")
    assert loaded.apply_chat_template(MESSAGES, chat_template="shout", tokenize=False) == "HI"


# Written whole --------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_older_model(tmp_path):
    folder = tmp_path / "model"
    for number in (1, 2):
        with new_folder(folder) as partial:
            (partial / "number").write_text(str(number))
    full = OSError(28, "No space left on device")
    kept = pytest.raises(CheckpointError, match=r"could not be written .*No space.*one is kept")
    with kept, new_folder(folder):
        raise full
    assert (folder / "number").read_text() == "2"
    assert os.listdir(tmp_path) == ["model"]


# What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("runs/sft/checkpoints/policy.ckpt", "runs/sft/model"),
        ("runs/reward/checkpoints/reward.ckpt", "runs/reward/model"),
        ("runs/ppo/checkpoints/best.ckpt", "runs/ppo/best"),
        ("runs/ppo/checkpoints/last.ckpt", "runs/ppo/model"),
        ("elsewhere/last.ckpt", "elsewhere/model"),
    ],
)
def test_a_checkpoint_as_a_model_is_refused_with_the_folder(source, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for exists in (False, True):
        for load in (load_causal_lm, load_reward_model, load_tokenizer, context_length):
            with pytest.raises(CheckpointError, match=rf"only continues its own run.*: {folder}$"):
                load(source)
        if not exists:
            (tmp_path / source).parent.mkdir(parents=True)
            (tmp_path / source).write_bytes(b"0")


@each_training
def test_the_wrong_kind_is_refused(lora, policy_folders, tmp_path):
    base = policy_folders("llama")
    policy = write_policy(tmp_path / "policy", trained_policy(base, lora), base)
    reward = write_reward_model(tmp_path / "reward", trained_reward_model(base, lora), base)
    for refuse in (load_causal_lm, lambda source: check_kind(source, "policy")):
        with pytest.raises(CheckpointError, match="a policy is needed here, but this is a reward"):
            refuse(str(reward))
    for refuse in (load_reward_model, lambda source: check_kind(source, "reward")):
        with pytest.raises(CheckpointError, match=r"reward model is needed.*(adapter|Llama)"):
            refuse(str(policy))


def adapter_folder(policy_folders, tmp_path):
    base = policy_folders("llama")
    return write_policy(tmp_path / "adapter", trained_policy(base, LORA), base)


def rewrite_adapter(folder, change):
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")


ADAPTER = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop(ADAPTER),
        lambda weights: weights.update({f"{ADAPTER}2": torch.zeros(1)}),
        lambda weights: weights.update({ADAPTER: torch.zeros(3, 3)}),
    ],
    ids=["missing", "more", "shape"],
)
def test_adapters_that_do_not_fit_are_refused(change, policy_folders, tmp_path):
    folder = adapter_folder(policy_folders, tmp_path)
    rewrite_adapter(folder, change)
    with pytest.raises(CheckpointError, match="the adapters do not fit the model"):
        load_causal_lm(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"base_model_name_or_path": "{folder}"}, "is a folder of adapters itself"),
        ({"base_model_name_or_path": "/none"}, "under its adapters: /none: no such model folder"),
        ({"peft_type": "IA3"}, "only LoRA adapters"),
        ({"peft_type": "FUTURE"}, "cannot be read"),
        ({"target_modules": ["nothing"]}, "do not fit the model"),
    ],
    ids=["no base", "on itself", "base gone", "other kind", "unknown kind", "other modules"],
)
def test_a_folder_of_adapters_that_makes_no_sense_is_refused(
    change, message, policy_folders, tmp_path
):
    folder = adapter_folder(policy_folders, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    if "peft_type" in change:  # of other settings, too
        config = {"base_model_name_or_path": config["base_model_name_or_path"]}
    for name, value in change.items():
        config[name] = value.format(folder=folder) if isinstance(value, str) else value
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_causal_lm(str(folder))


def test_a_reward_adapter_of_somebody_else(policy_folders, tmp_path):
    base = policy_folders("llama")
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    settings = {"task_type": "SEQ_CLS", "r": 2, "init_lora_weights": False}
    modules = {"target_modules": ["q_proj"], "modules_to_save": ["score"]}
    theirs = get_peft_model(classifier, LoraConfig(**settings, **modules)).eval()
    theirs.save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(tmp_path)
    config.base_model_name_or_path = str(base)
    config.save_pretrained(tmp_path)
    rows = random_rows([5], [4])
    with torch.no_grad():
        expected = theirs(rows.input_ids, attention_mask=torch.ones_like(rows.input_ids)).logits
        ours = load_reward_model(str(tmp_path))
        torch.testing.assert_close(ours(rows), expected[:, 0], rtol=1e-4, atol=1e-4)
    # Without its head it would be scored by random numbers.
    config.modules_to_save = None
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="1 weights are missing"):
        load_reward_model(str(tmp_path))


def save_classifier(folder, architecture="llama", **changes):
    config = lively_model(architecture, **changes).config
    model = AutoModelForSequenceClassification.from_config(config)
    shake(model)
    model.save_pretrained(folder)
    save_tiny_tokenizer(folder)
    return model.eval()


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


def test_a_reward_model_whose_head_is_not_linear_is_refused(tmp_path, monkeypatch):
    save_classifier(tmp_path, num_labels=1)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    loaded.score = nn.Sequential(loaded.score)
    monkeypatch.setattr(
        AutoModelForSequenceClassification,
        "from_pretrained",
        lambda *_, **__: (loaded, {"missing_keys": [], "unexpected_keys": []}),
    )
    with pytest.raises(CheckpointError, match="no linear head named 'score'"):
        load_reward_model(str(tmp_path))


def test_eos_learns_also_where_it_pads(tmp_path):
    eos = 2
    folder = save_policy(tmp_path / "policy", pad_token_id=eos, eos_token_id=eos)
    reward_model = ScalarModel(load_trunk(str(folder)))
    ids = torch.tensor([[5, 7, 9, eos]])
    mask = torch.tensor([[False, False, True, True]])
    reward_model(TokenRows(ids, torch.tensor([4]), mask)).sum().backward()
    grads = reward_model.backbone.embed_tokens.weight.grad
    assert grads[ids[0]].abs().sum(1).min() > 0
    saved = write_reward_model(tmp_path / "reward", reward_model, folder)
    assert load_reward_model(str(saved)).backbone.embed_tokens.padding_idx is None
