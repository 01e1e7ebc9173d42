"""Every shipped YAML file parses where it belongs, and composes as the documentation says."""

from pathlib import Path

import pytest
import yaml

from lit_rlhf.cli import PHASES
from tests.docs.parse_examples import phase_cli

CONFIGS = Path(__file__).parents[2] / "configs"
# The phases that the fragments of a folder are for.
PHASES_OF = {
    "trainer": PHASES,
    "logger": PHASES,
    "debug": PHASES,
    "lora": PHASES,
    "memory": PHASES,
    "advantage": ("ppo",),
    "critic": ("ppo",),
    "policy_loss": ("ppo",),
    "kl_penalty": ("ppo",),
    "loss": ("dpo",),
    "reward_loss": ("reward",),
    "generator": ("ppo",),
    "reward": ("ppo",),
}
DEMO_PHASES = ("sft", "reward", "ppo", "dpo")
FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
PAIRS = [
    (phase, str(file))
    for file in FILES
    if file.stem != "flywheel"  # of a command beside the phases
    for phase in PHASES_OF.get(
        file.parts[0], (file.stem.replace("_", "-"),)
    )  # else a phase's own, or the demo's
]


def own_file(phase):
    return f"{phase.replace('-', '_')}.yaml"


def parse(phase, *files, options=(), command="fit"):
    """Return the options that files and options make, as plain dictionaries."""
    words = [command, *(f"--config={CONFIGS / file}" for file in files), *options]
    return phase_cli(phase).parser.parse_args(words)[command].as_dict()


def write(folder, text):
    path = folder / "fragment.yaml"
    path.write_text(text)
    return path


def stands_in(written, parsed):
    """Tell whether all that was written is in what was parsed."""
    if isinstance(written, dict):
        return isinstance(parsed, dict) and all(
            same_class(value, parsed[key]) if key == "class_path" else stands_in(value, parsed[key])
            for key, value in written.items()
        )
    if isinstance(written, list):
        return len(written) == len(parsed) and all(map(stands_in, written, parsed))
    return written == parsed


def same_class(written, parsed):
    return written.rpartition(".")[2] == parsed.rpartition(".")[2]


def class_names(items):
    return [item["class_path"].rpartition(".")[2] for item in items]


@pytest.mark.parametrize(("phase", "file"), PAIRS)
def test_a_file_behind_its_phase_says_what_counts(phase, file):
    options = parse(phase, own_file(phase), file)
    assert stands_in(yaml.safe_load((CONFIGS / file).read_text()), options)


def leaves(tree, prefix=""):
    """Yield the dotted name and the value of each plain setting."""
    for key, value in tree.items():
        if isinstance(value, dict) and "class_path" not in value:
            yield from leaves(value, f"{prefix}{key}.")
        elif not isinstance(value, dict | list):
            yield f"{prefix}{key}", value


# What a file sets back to the default: an earlier file may have what does not go with it.
TAKEN_BACK = {"advantage/dapo.yaml": {"kl.target", "kl.coefficient", "kl.horizon"}}


@pytest.mark.parametrize(
    ("phase", "file"), [pair for pair in PAIRS if not pair[1].startswith(("demo", "debug"))]
)
def test_a_file_restates_no_default(phase, file):
    if file == own_file(phase):
        before = vars(phase_cli(phase).fit_parser.get_defaults().as_flat())
    else:
        assert parse(phase, own_file(phase), file) != parse(phase, own_file(phase))
        before = dict(leaves(parse(phase, own_file(phase))))
    written = dict(leaves(yaml.safe_load((CONFIGS / file).read_text())))
    restated = {name for name, value in written.items() if before.get(name, "absent") == value}
    assert restated == TAKEN_BACK.get(file, set())


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_begins_with_a_comment(file):
    assert (CONFIGS / file).read_text().startswith("# ")


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_has_all_it_needs_for_every_command(phase, command):
    options = parse(phase, own_file(phase), command=command)
    assert options["model"]["backbone" if phase == "reward" else "policy"]
    assert all(options["data"][split] for split in ("train", "validation", "test"))
    assert options["trainer"]["use_distributed_sampler"] is False


@pytest.mark.parametrize("scale", ["quick", "smoke", "full"])
@pytest.mark.parametrize("phase", DEMO_PHASES)
def test_the_demonstrations_sizes_keep_fragments(phase, scale):
    files = ["lora/lora.yaml", "logger/wandb.yaml", f"demo/{scale}/{own_file(phase)}"]
    options = parse(phase, own_file(phase), *files)
    assert options["model"]["lora"]["rank"] == 16
    assert class_names([options["trainer"]["logger"]]) == ["WandbAutoLogger"]


def test_fragments_of_different_folders_compose():
    files = ["advantage/rloo.yaml", "reward/vader.yaml"]
    options = parse("ppo", "ppo.yaml", *files, "trainer/fsdp2.yaml", "lora/lora.yaml")
    model, trainer = options["model"], options["trainer"]
    assert class_names([model["advantage"], model["reward"]]) == ["RLOO", "VaderReward"]
    assert (trainer["strategy"], trainer["devices"]) == ("fsdp2", 2)
    alone = parse("ppo", "ppo.yaml")["trainer"]["val_check_interval"]
    assert trainer["val_check_interval"] == alone == 0.1  # no fragment speaks of it


def test_kl_control_and_monitor_are_groups_of_ppo_alone():
    words = ["--kl.target=null", "--kl.coefficient=0.05", "--monitor.action=stop"]
    options = parse("ppo", "ppo.yaml", options=words)
    assert (options["kl"]["target"], options["kl"]["coefficient"]) == (None, 0.05)
    assert (options["monitor"]["action"], options["monitor"]["validation"]) == ("stop", None)
    assert not {"kl", "monitor"} & parse("sft", "sft.yaml").keys()


def test_callbacks_plus_appends(tmp_path):
    fragment = write(
        tmp_path,
        "trainer: {callbacks+: [{class_path: lightning.pytorch.callbacks.LearningRateMonitor}]}",
    )
    before = parse("ppo", "ppo.yaml")["trainer"]["callbacks"]
    after = parse("ppo", "ppo.yaml", fragment)["trainer"]["callbacks"]
    assert after[:-1] == before
    assert class_names(after[-1:]) == ["LearningRateMonitor"]


def test_later_files_and_options_win(tmp_path):
    sizes = write(tmp_path, "trainer: {max_epochs: 3}\nmodel: {optimizer: {learning_rate: 0.5}}")
    options = parse("sft", "sft.yaml", sizes, options=["--model.optimizer.learning_rate=0.25"])
    assert options["trainer"]["max_epochs"] == 3
    assert options["model"]["optimizer"]["learning_rate"] == 0.25
    assert parse("sft", sizes, "sft.yaml")["trainer"]["max_epochs"] == 1


def test_another_class_drops_the_settings_that_it_does_not_have():
    options = parse("ppo", "ppo.yaml", "advantage/grpo.yaml", "advantage/rloo.yaml")
    assert options["model"]["advantage"]["init_args"] == {"k": 4}
    options = parse("ppo", "ppo.yaml", "reward/function.yaml")
    assert options["model"]["reward"]["init_args"].keys() == {
        "function",
        "timeout_s",
        "num_parallel",
        "per_prompt",
        "failures",
    }


def test_another_class_keeps_the_settings_that_it_has():
    logger = parse("sft", "sft.yaml", "logger/wandb.yaml")["trainer"]["logger"]["init_args"]
    assert (logger["name"], logger["project"]) == ("sft", "lit-rlhf")
    shipped = parse("ppo", "ppo.yaml")["model"]["reward"]["init_args"]
    changed = parse("ppo", "ppo.yaml", options=["--model.reward.init_args.batch_size=8"])
    assert changed["model"]["reward"]["init_args"] == {**shipped, "batch_size": 8}


def test_a_rule_as_reward_leaves_the_learned_judge():
    judges = parse("ppo", "ppo.yaml", "reward/vader.yaml")["model"]["judges"]
    assert judges.keys() == {"validation"}
