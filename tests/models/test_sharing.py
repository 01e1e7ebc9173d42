import torch

from lit_rlhf.models import LoRAConfig, ScalarModel, load_reward_model, load_trunk
from lit_rlhf.models.backbone import apply_lora
from lit_rlhf.models.freezing import freeze
from lit_rlhf.models.handover import load_causal_lm
from lit_rlhf.models.sharing import share_frozen
from tests.models.examples import random_rows, shake, write_reward_model

LORA = LoRAConfig(rank=2)


def adapted(folder):
    return apply_lora(freeze(load_causal_lm(str(folder))), LORA)


def storages(model):
    return {parameter.data_ptr() for parameter in model.parameters()}


def reward_with_adapter(folder, path):
    reward_model = ScalarModel(apply_lora(freeze(load_trunk(str(folder))), LORA))
    with torch.no_grad():
        for parameter in reward_model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return str(write_reward_model(path / "reward", reward_model, folder))


def test_a_reward_adapter_stands_on_the_policys_weights(policy_folders, tmp_path):
    folder = policy_folders()
    path = reward_with_adapter(folder, tmp_path)
    policy, rows = adapted(folder), random_rows([3, 5], [4, 2])
    merged = load_reward_model(path)
    model = freeze(load_reward_model(path, merge=False))
    saved = share_frozen(model, policy)
    frozen = {name: value for name, value in model.named_parameters() if "lora_" not in name}
    trunk = {value for name, value in frozen.items() if not name.startswith("head.")}
    assert saved == sum(value.nbytes for value in trunk)
    assert {value.data_ptr() for value in trunk} <= storages(policy)
    with torch.no_grad():
        torch.testing.assert_close(model(rows), merged(rows), rtol=1e-4, atol=1e-5)


def test_weights_that_differ_or_train_are_left_alone(policy_folders):
    policy = adapted(policy_folders())
    other = freeze(load_causal_lm(str(policy_folders())))
    shake(other, deviation=1e-3)
    before = storages(other)
    assert share_frozen(other, policy) == 0
    assert storages(other) == before
    training = load_causal_lm(str(policy_folders()))
    assert share_frozen(training, policy) == 0
    assert not storages(training) & storages(policy)
    plain = freeze(load_causal_lm(str(policy_folders())))
    trained = load_causal_lm(str(policy_folders()))
    assert share_frozen(plain, trained) == 0
