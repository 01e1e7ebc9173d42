"""`predict`: responses of policies, scores of reward models, in memory and in a file."""

import json
from datetime import date

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from lit_rlhf.callbacks import PredictionConfig, PredictionFile
from lit_rlhf.data import DPODataModule, PPODataModule, RewardDataModule, SFTDataModule
from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.modules import NormalizerConfig, RewardModule, SFTModule
from lit_rlhf.objectives.reward import StepLoss
from lit_rlhf.rewards import LearnedReward
from lit_rlhf.rollout import Sampling
from tests.support.phase_runs import build
from tests.support.phases import demonstrations, judged_groups, phase_trainer
from tests.support.tokenizer import tiny_tokenizer
from tests.support.two_processes import run_in_two_processes

GREEDY = Sampling(max_new_tokens=5, temperature=0.0)
KINDS = {"sft": SFTDataModule, "dpo": DPODataModule, "ppo": PPODataModule}


def predict(folder, module, data, **changes):
    trainer = phase_trainer(folder, **changes)
    return [row for batch in trainer.predict(module, data) for row in batch]


@pytest.mark.parametrize("phase", ["sft", "dpo", "ppo", "ppo-lora"])
def test_every_policy_responds_as_it_generates(tmp_path, folder, phase):
    module, _ = build(phase, folder)
    rows = [{"prompt": f"say {index}: ", "id": index} for index in range(5)]
    data = KINDS[phase[:3]](str(folder), predict=rows, batch_size=2)
    module.prediction = PredictionConfig(GREEDY, samples_per_prompt=2)
    found = predict(tmp_path, module, data)
    prompts = [row["prompt"] for row in rows]
    expected = module.generate(prompts, sampling=GREEDY, samples_per_prompt=2)
    assert [row["response"] for row in found] == expected
    assert [row["prompt"] for row in found] == [prompt for prompt in prompts for _ in range(2)]
    assert [row["row"] for row in found] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert found[2]["fields"] == {"id": 1}


def test_chats_are_written_with_the_options_of_the_data(tmp_path, policy):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}{{ ' (short)' if short else ' (long)' }}: "
    chat = [{"role": "user", "content": "say it"}]
    options = {"short": True}
    data = SFTDataModule(tokenizer, predict=[{"prompt": chat}], template_options=options)
    module = SFTModule(policy)
    module.tokenizer = tokenizer
    assert module.generate([chat]) == module.generate(["say it (long): "])
    expected = module.generate(["say it (short): "])
    assert module.generate([chat], template_options=options) == expected
    predict(tmp_path, module, data)
    assert module.generate([chat]) == expected != module.generate([chat], template_options={})


def test_ppo_samples_as_its_setting_says(tmp_path, folder):
    module, _ = build("ppo", folder)
    data = PPODataModule(str(folder), predict=[{"prompt": "a"}] * 2, batch_size=2)
    found = [row["response"] for row in predict(tmp_path, module, data)]
    assert found == module.generate(["a", "a"], sampling=module.sampling)


def test_responses_past_the_models_context_are_refused(tmp_path, folder):
    module, _ = build("sft", folder)
    expected = "max_new_tokens=100: with the longest prompt of .* model's context of 128"
    long = "so " * 40
    with pytest.raises(ConfigError, match=expected):
        module.generate([long], sampling=Sampling(max_new_tokens=100))
    module.prediction = PredictionConfig(Sampling(max_new_tokens=100))
    seen = []
    module.predict_step = lambda batch, _: seen.append(batch)
    data = SFTDataModule(str(folder), predict=[{"prompt": "a"}, {"prompt": long}], batch_size=1)
    with pytest.raises(ConfigError, match=expected):
        predict(tmp_path, module, data)
    assert not seen


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_validation_past_the_models_context_is_refused(tmp_path, folder, command):
    module, _ = build("ppo", folder)
    rows = [{"prompt": "a"}] * 4
    held_out = [*rows, {"prompt": "so " * 40}]
    data = PPODataModule(str(folder), train=rows, validation=held_out, batch_size=2)
    with pytest.raises(ConfigError, match="model's context of 128"):
        getattr(phase_trainer(tmp_path, max_epochs=1), command)(module, data)


def test_the_prompts_of_other_rows_are_those_of_their_phase(tmp_path, policy):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    rows = [
        {"prompt": "a", "response": "b"},
        {"messages": [*turns, {"role": "user", "content": "b"}]},
        {"prompt": "hi", "chosen": turns, "rejected": [turns[0], {**turns[1], "content": "no"}]},
        {"prompt": turns[:1]},
        {"system": "be kind", "prompt": turns[:1]},
    ]
    data = SFTDataModule(policy, predict=rows, columns={"response": "nowhere"})
    found = [row["prompt"] for row in predict(tmp_path, SFTModule(policy), data)]
    with_system = [{"role": "system", "content": "be kind"}, turns[0]]
    assert found == ["a", turns[:1], turns[:1], turns[:1], with_system]


def test_predictions_keep_the_tools_of_their_prompts(tmp_path, policy):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ tools }}" + tokenizer.chat_template
    turns = [{"role": "user", "content": "hi"}]
    data = SFTDataModule(tokenizer, predict=[{"prompt": turns, "tools": tools}])
    module = SFTModule(policy)
    module.prediction = PredictionConfig(GREEDY)
    (row,) = predict(tmp_path, module, data)
    assert (row["prompt"], row["tools"]) == (turns, tools)


def test_a_loader_of_plain_prompts(tmp_path, policy):
    module = SFTModule(policy)
    module.prediction = PredictionConfig(GREEDY)
    found = predict(tmp_path, module, DataLoader(["a", "b", "c"], batch_size=2))
    responses = [row["response"] for row in found]
    assert responses[:2] == module.generate(["a", "b"], sampling=GREEDY)
    with pytest.raises(ConfigError, match="list of prompts, got tensor"):
        predict(tmp_path, module, DataLoader([1, 2]))


@pytest.mark.parametrize(
    ("rows", "error", "expected"),
    [
        (None, ConfigError, r"'predict' needs data: set 'data\.predict'"),
        ([{"prompt": "a"}, {"answer": "b"}], DataError, r"data\.predict\[1\]"),
    ],
)
def test_what_cannot_be_predicted_is_named(tmp_path, policy, rows, error, expected):
    with pytest.raises(error, match=expected):
        predict(tmp_path, SFTModule(policy), SFTDataModule(policy, predict=rows))


def test_a_reward_model_scores_as_its_folder_does(tmp_path, folder):
    config = NormalizerConfig(str(folder / "prompts.jsonl"), num_samples=4, max_new_tokens=4)
    module = RewardModule(str(folder), normalizer=config)
    groups = [{key: group[key] for key in ("prompt", "responses")} for group in judged_groups(2)]
    rows = [*groups, {"prompt": "c", "chosen": "d", "rejected": "e"}, *demonstrations(1)]
    data = RewardDataModule(
        str(folder), train=str(folder / "groups.jsonl"), predict=rows, batch_size=2
    )
    with pytest.raises(ConfigError, match="head of this reward model is fresh"):
        predict(tmp_path, module, data)
    trainer = phase_trainer(tmp_path, max_steps=2, limit_val_batches=0)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "any.ckpt")
    module.save_pretrained(tmp_path / "model")
    found = predict(tmp_path, module, data)
    assert [row["row"] for row in found] == [0] * 2 + [1] * 3 + [2] * 2 + [3]
    prompts, responses = ([row[name] for row in found] for name in ("prompt", "response"))
    cpu = torch.device("cpu")
    expected = LearnedReward(str(tmp_path / "model")).score(prompts, responses, cpu)
    scores = torch.tensor([row["score"] for row in found])
    assert torch.allclose(scores, expected, atol=1e-5)
    loaded = predict(tmp_path, RewardModule.load_from_checkpoint(tmp_path / "any.ckpt"), data)
    assert torch.allclose(torch.tensor([row["score"] for row in loaded]), expected, atol=1e-5)


def test_scores_of_steps_are_no_scores_of_responses(tmp_path, policy):
    module = RewardModule(policy, loss=StepLoss())
    module._has_fresh_head = False
    with pytest.raises(ConfigError, match="StepLoss scores steps"):
        predict(tmp_path, module, RewardDataModule(policy, predict=demonstrations(1)))


def predict_in_processes(folder, policy, path, devices):
    rows = [{"prompt": f"say {index}: "} for index in range(5)]  # a last batch of one
    data = SFTDataModule(policy, predict=rows, batch_size=4)
    callbacks = [PredictionFile(path, sampling=GREEDY)]
    strategy = "auto" if devices == 1 else "ddp"
    trainer = phase_trainer(folder, strategy=strategy, devices=devices, callbacks=callbacks)
    trainer.predict(SFTModule(policy), data)


def test_two_processes_write_one_file(tmp_path, policy):
    paths = {devices: tmp_path / f"{devices}.jsonl" for devices in (1, 2)}
    predict_in_processes(tmp_path, policy, str(paths[1]), 1)
    run_in_two_processes(
        predict_in_processes, tmp_path, policy, str(paths[2]), 2, init_process_group=False
    )
    assert paths[2].read_text() == paths[1].read_text()
    assert len(paths[1].read_text().splitlines()) == 5


def test_a_file_has_the_predictions_once_it_is_whole(tmp_path, policy):
    path = tmp_path / "made" / "out.jsonl"
    callback = PredictionFile(str(path), sampling=GREEDY, seed=3)
    module = SFTModule(policy)
    data = SFTDataModule(
        policy, predict=[{"prompt": f"\u2028é{i}"} for i in range(3)], batch_size=2
    )
    found = predict(tmp_path, module, data, callbacks=[callback])
    assert [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]] == found
    assert module.prediction.sampling == GREEDY
    assert [file.name for file in path.parent.iterdir()] == ["out.jsonl"]


def test_a_file_has_fields_that_json_has_not_as_text(tmp_path, policy):
    rows = Dataset.from_dict({"prompt": ["a"], "day": [date(2020, 1, 2)]})
    callback = PredictionFile(str(tmp_path / "out.jsonl"), sampling=GREEDY)
    predict(tmp_path, SFTModule(policy), SFTDataModule(policy, predict=rows), callbacks=[callback])
    assert json.loads(callback.path.read_text())["fields"] == {"day": "2020-01-02"}


def test_a_file_that_cannot_be_written_is_one_error(tmp_path, policy):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "out.jsonl"
    with pytest.raises(ConfigError, match=rf"prediction\.path: {path} cannot be written \("):
        predict(
            tmp_path,
            SFTModule(policy),
            SFTDataModule(policy, predict=[{"prompt": "a"}]),
            callbacks=[PredictionFile(str(path), sampling=GREEDY)],
        )
