"""Bad settings are one clear error before any step: the key (or file and line), and what to do.

A row of the table: its name, the phase, what makes it (options behind a sound command line, or the
text of a YAML file behind it), and phrases that the message must have. A phase's parser is built
once, for all of its rows; what follows is what the command does.
"""

import re
import shutil

import pytest

from lit_rlhf.config_messages import untouched_seeds
from lit_rlhf.errors import LitRLHFError
from lit_rlhf.phase_cli import PhaseCLI, phase_classes, readable_errors
from tests.configs.conftest import CONFIGS, QUIET
from tests.docs.parse_examples import ParserOnly
from tests.models.examples import change_json, save_own_code, save_policy
from tests.support.tiny_models import tiny_model

HOME = "~/.cache/lit_rlhf"
MODEL = f"{HOME}/SmolLM2-135M-Instruct"
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
CPU = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.logger=false", *QUIET]
SOUND = {
    "sft": ["--data.batch_size=2"],
    "reward": ["--model.normalizer.num_samples=4", "--model.normalizer.max_new_tokens=4"],
    "dpo": [f"--model.policy={MODEL}"],
    "ppo": [
        f"--model.policy={MODEL}",
        "--model.reward=FunctionReward",
        "--model.reward.function=tests.support.toy_rewards.length",
        "--model.judges=null",
        "--trainer.val_check_interval=1.0",
        "--data.batch_size=4",
        "--model.sampling.max_new_tokens=4",
    ],
}
LEARNED = ["--model.reward=LearnedReward"]


def given(number):
    """Return the pattern of a number as what was given: no digit of a limit matches it."""
    return re.compile(rf"(=|is |got |value: ){re.escape(number)}(\.0)?(?![.\d])")


def is_in(phrase, message):
    return phrase.search(message) if isinstance(phrase, re.Pattern) else phrase in message


# name, phase, options or YAML, phrases of the message
CASES = [
    # Misspelt.
    ("an option of the optimizer", "sft", ["--model.optimizer.lerning_rate=1"],
     ["lerning_rate", "did you mean 'model.optimizer.learning_rate'"]),
    ("an option of the trainer", "sft", ["--trainer.max_epocs=1"],
     ["max_epocs", "did you mean 'trainer.max_epochs'"]),
    ("a group", "ppo", ["--modell.policy=x"], ["modell.policy", "mean 'model.policy'"]),
    ("a key that has another name now", "reward", "model:\n  policy: x",
     ["wrong.yaml:2: ", "model.policy", "set model.backbone"]),
    ("an option of the command", "dpo", ["--ckpt_pth=x"], ["ckpt_pth", "mean 'ckpt_path'"]),
    ("nothing like it", "sft", ["--nothing.at_all=1"], ["nothing.at_all", "--help lists"]),
    ("a key of a file", "ppo", "model:\n  update:\n    num_epoch: 3\n",
     ["wrong.yaml:3: ", "model.update.num_epoch", "mean 'model.update.num_epochs'"]),
    ("a key of the data in a file", "sft", "data: {batchsize: 3}",
     ["wrong.yaml:1: ", "batchsize", "mean 'data.batch_size'"]),
    ("a group of a file", "sft", "\ntrainr: {max_epochs: 3}",
     ["wrong.yaml:2: ", "trainr", "mean 'trainer"]),
    ("the self-checks", "sft", "self_checks: {enable: false}",
     ["self_checks.enable", "mean 'self_checks.enabled'"]),
    ("an argument of a class", "ppo",
     "model: {reward: {class_path: LearnedReward, init_args: {modle: x}}}",
     ["model.reward", "modle", "mean 'model'"]),
    ("an argument of a callback", "ppo",
     "trainer: {callbacks: [{class_path: SampleTableCallback, init_args: {num_sample: 1}}]}",
     ["trainer.callbacks", "num_sample", "mean 'num_samples'"]),
    ("an argument that another class has", "ppo", ["--model.advantage.k=3"],
     ["model.advantage", "GAE", "'k' is not accepted"]),
    ("a class", "ppo", "model: {advantage: {class_path: RLO}}",
     ["model.advantage", "no class 'RLO'", "mean 'RLOO'"]),
    ("a class in its package", "ppo", "model: {advantage: {class_path: lit_rlhf.objectives.RLO}}",
     ["model.advantage", "no class 'RLO'", "mean 'RLOO'"]),
    ("a callback", "ppo", "trainer: {callbacks: [{class_path: SampleTabelCallback}]}",
     ["trainer.callbacks", "SampleTabelCallback", "mean 'SampleTableCallback'"]),
    ("a loss", "dpo", "model: {loss: {class_path: DPOO}}", ["model.loss", "mean 'DPO'"]),
    # Files.
    ("no YAML", "sft", "model:\n  policy: [x\n",
     ["wrong.yaml:", "is no YAML", "correct this line"]),
    ("a tab in YAML", "sft", "model:\n\tpolicy: x\n", ["wrong.yaml:2", "is no YAML"]),
    ("a group that is twice in a file", "sft",
     "trainer: {max_epochs: 2}\nmodel: {}\ntrainer: {max_steps: 3}\n",
     ["wrong.yaml:3: ", "'trainer'", "line 1", "under one key"]),
    ("a key that is twice in a part", "ppo",
     "trainer:\n  callbacks+:\n    - class_path: SelfChecks\n      class_path: SelfChecks\n",
     ["wrong.yaml:4: ", "'class_path'", "line 3"]),
    ("a Python object in YAML", "sft", "seed_everything: !!python/object/apply:os.getpid []\n",
     ["constructor", "python/object"]),
    ("a list for a mapping", "sft", "model: [1, 2]", ["model"]),
    ("no such file", "sft", ["--config=nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
    # What Lightning has, and the phases have in another way.
    ("the older fsdp", "sft", ["--trainer.strategy=fsdp"], ["trainer.strategy fsdp", "fsdp2"]),
    ("its class", "ppo", "trainer: {strategy: {class_path: FSDPStrategy}}",
     ["FSDPStrategy", "fsdp2"]),
    ("two callbacks of which there may be one", "sft",
     "trainer:\n  callbacks+:\n" + 2 * "    - class_path: AveragedWeights\n",
     ["more than one stateful callback of type `AveragedWeights`"]),
    ("a strategy of notebooks", "sft", ["--trainer.strategy=ddp_spawn", "--trainer.devices=2"],
     ["trainer.strategy ddp_spawn", "--trainer.strategy ddp"]),
    # Wrong types.
    ("a word for a number", "sft", ["--data.batch_size=many"], ["data.batch_size", "int", "many"]),
    ("a fraction for a count", "sft", ["--data.batch_size=2.5"], ["data.batch_size", "int", "2.5"]),
    ("a word for a rate", "sft", ["--model.optimizer.learning_rate=fast"],
     ["learning_rate", "float", "fast"]),
    ("a word for true", "sft", ["--model.cpu_paths=perhaps"], ["cpu_paths", "bool", "perhaps"]),
    ("a choice that is none", "ppo", ["--model.critic=both"],
     ["model.critic", "'shared', 'separate'", "both"]),
    ("a template that is none", "sft", ["--data.template=chats"],
     ["data.template", "'auto', 'chat', 'plain'", "chats"]),
    ("overlong that is none", "sft", ["--data.overlong=cut"],
     ["'error', 'truncate', 'drop'", "cut"]),
    ("cutting a prompt", "ppo", ["--data.overlong=truncate"], ["data.overlong", "'error', 'drop'"]),
    ("a schedule that is none", "sft", ["--model.optimizer.schedule=step"],
     ["schedule", "'linear', 'cosine', 'constant'", "step"]),
    ("a precision that is none", "sft", ["--trainer.precision=8"],
     ["trainer.precision", given("8")]),
    ("empty responses that are none", "dpo", ["--data.empty_responses=drop"], ["'error', 'keep'"]),
    ("a KL coefficient of text", "ppo", ["--kl.coefficient=small"], ["kl.coefficient", "small"]),
    # Null, where that says nothing.
    ("a loss that is null", "dpo", "model:\n  loss: null\n",
     ["wrong.yaml:2: ", "model.loss is null", "leave it out"]),
    ("a loss that is null on the command line", "dpo", ["--model.loss=null"],
     ["model.loss is null", "leave it out"]),
    ("a number inside of a part", "ppo", "model: {update: {num_epochs: null}}",
     ["wrong.yaml:1: ", "model.update.num_epochs is null"]),
    ("a number of a class", "dpo",
     "model: {loss: {class_path: SimPO, init_args: {beta: null}}}", ["model.loss.beta is null"]),
    ("a choice of a group that may be null", "ppo", "model: {kl_penalty: {place: null}}",
     ["model.kl_penalty.place is null"]),
    ("a class inside of a part", "ppo", ["--model.update.policy_loss", "null"],
     ["model.update.policy_loss is null"]),
    ("a batch size without a number", "sft", "data:\n  batch_size:\n",
     ["wrong.yaml:2: ", "data.batch_size is null"]),
    ("a group without settings", "sft", "seed_everything: 1\ntrainer:\n",
     ["wrong.yaml:2: ", "trainer is null"]),
    ("nothing but a group without settings", "sft", "# of mine\ntrainer:\n",
     ["wrong.yaml:2: ", "trainer is null", "leave it out"]),
    ("nothing but groups without settings", "sft", "trainer:\nmodel:\n",
     ["wrong.yaml:1: ", "trainer is null"]),
    ("a file of nothing", "sft", "# trainer: {max_epochs: 1}\n", ["wrong.yaml: has no settings"]),
    ("a text", "sft", "max_epochs 1\n", ["wrong.yaml: has no settings", "`name: value`"]),
    ("a list of settings", "sft", "- max_epochs: 1\n", ["wrong.yaml: has no settings"]),
    ("a callback's group", "ppo", "monitor: null", ["wrong.yaml:1: ", "monitor is null"]),
    # Missing.
    ("a policy called null", "sft", ["--model.policy=null"],
     ["null: no tokenizer could be loaded"]),
    ("an empty policy", "sft", ["--model.policy="], ["no model given", "name a hub model"]),
    ("no training data", "sft", ["--data.train=null"], ["data.train", "--data.train FILE"]),
    ("no model of a reward", "ppo", "model: {reward: {class_path: LearnedReward}}",
     ["model.reward", "model"]),
    # Negative, zero, or no number.
    *(
        (f"{key} {value}", phase, [f"--{key}={value}"], [key.rpartition(".")[2], given(value)])
        for phase, key, values in [
            ("sft", "data.batch_size", ["0", "-4"]),
            ("sft", "data.max_length", ["0", "1"]),
            ("sft", "data.limit_train", ["0"]),
            ("sft", "data.seed", ["-1"]),
            ("reward", "data.eval_batch_size", ["0"]),
            ("ppo", "data.max_prompt_length", ["0"]),
            ("sft", "model.optimizer.learning_rate", ["0", "-1", "nan"]),
            ("sft", "model.optimizer.weight_decay", ["-0.1"]),
            ("sft", "model.optimizer.beta1", ["1", "-0.1"]),
            ("sft", "model.optimizer.beta2", ["1"]),
            ("sft", "model.optimizer.eps", ["0"]),
            ("sft", "model.optimizer.warmup_fraction", ["1", "-0.5"]),
            ("sft", "model.packing_width", ["0", "-8"]),
            ("sft", "model.max_skipped_steps", ["-1"]),
            ("sft", "model.lora.rank", ["0"]),
            ("sft", "model.lora.alpha", ["0"]),
            ("sft", "self_checks.max_truncated_share", ["0", "1.5"]),
            ("sft", "self_checks.max_gradient_growth", ["1", "nan"]),
            ("reward", "model.loss.centering", ["-1"]),
            ("reward", "model.normalizer.num_samples", ["1"]),
            ("reward", "model.normalizer.max_new_tokens", ["0"]),
            ("dpo", "model.loss.beta", ["0", "-0.1"]),
            ("dpo", "model.loss.label_smoothing", ["0.5", "-0.1"]),
            ("ppo", "kl.coefficient", ["0", "-0.1", "inf"]),
            ("ppo", "kl.target", ["0", "nan"]),
            ("ppo", "kl.horizon", ["0", "inf"]),
            ("ppo", "monitor.false_alarm_rate", ["2"]),
            ("ppo", "monitor.tighten_factor", ["1"]),
            ("ppo", "model.update.num_epochs", ["0"]),
            ("ppo", "model.update.num_minibatches", ["0"]),
            ("ppo", "model.update.micro_batch_size", ["0"]),
            ("ppo", "model.update.policy_loss.clip_range", ["0"]),
            ("ppo", "model.update.value_clip_range", ["-1"]),
            ("ppo", "model.update.value_coef", ["-1"]),
            ("ppo", "model.update.entropy_coef", ["-1"]),
            ("ppo", "model.update.max_grad_norm", ["0"]),
            ("ppo", "model.update.max_first_log_ratio", ["0"]),
            ("ppo", "model.update.sampler_correction_cap", ["0.5"]),
            ("ppo", "model.sampling.max_new_tokens", ["0"]),
            ("ppo", "model.sampling.temperature", ["-1", "inf", "nan"]),
            ("ppo", "model.sampling.top_p", ["0", "1.5"]),
            ("ppo", "model.sampling.top_k", ["-1"]),
            ("ppo", "model.sampling.min_p", ["2"]),
            ("ppo", "model.advantage.gamma", ["1.5"]),
            ("ppo", "model.advantage.gae_lambda", ["-0.5"]),
            ("ppo", "model.generator.max_rows", ["0"]),
        ]
        for value in values
    ),
    ("a group of one", "ppo", ["--model.advantage=RLOO", "--model.advantage.k=1"],
     ["advantage.k is 1", "2 or more"]),
    ("no devices", "sft", ["--trainer.devices=0"], ["trainer", "devices"]),
    ("a negative number of devices", "sft", ["--trainer.accelerator=cpu", "--trainer.devices=-1"],
     ["trainer", "devices"]),
    ("no batches in a step", "sft", ["--trainer.accumulate_grad_batches=0"],
     ["trainer.accumulate_grad_batches is 0", "at least 1"]),
    # Contradictory.
    ("more rows than there are", "sft", ["--data.batch_size=999"],
     ["batch_size=999", "training examples", "smaller"]),
    ("more minibatches than rows", "ppo", ["--model.update.num_minibatches=5"],
     ["num_minibatches=5", "4 responses of the smallest batch", "raise data.batch_size"]),
    ("samples that are not the policy's", "ppo", ["--model.sampling.top_k=5"],
     ["model.sampling: top_k", "leave them out"]),
    ("a shortest response beyond the longest", "ppo", ["--model.sampling.min_new_tokens=9"],
     ["min_new_tokens", "max_new_tokens 4"]),
    ("a critic of its own from nothing", "ppo", ["--model.critic=separate"],
     ["critic_source", "the reward model to start from"]),
    ("a critic's source that nobody reads", "ppo", [f"--model.critic_source={MODEL}"],
     ["model.critic_source", "model.critic separate"]),
    ("a critic that nobody reads", "ppo",
     ["--model.advantage=RLOO", "--model.advantage.k=2", "--model.critic=separate"],
     ["model.critic separate", "RLOO reads no values"]),
    ("a scale that whitening takes away", "ppo",
     ["--model.advantage=GRPO", "--model.advantage.k=2", "--model.advantage.scale=batch"],
     ["model.advantage.scale batch has no effect", "model.whiten_advantages true"]),
    ("a clip range where it was before", "ppo", "model: {update: {clip_range: 0.3}}",
     ["wrong.yaml:1: ", "model.update.clip_range", "model.update.policy_loss.clip_range"]),
    ("a penalty as it was switched off before", "ppo", "model: {kl_penalty: false}",
     ["model.kl_penalty", "write null for none"]),
    ("a penalty in the loss by an estimate without gradient", "ppo",
     ["--model.kl_penalty.place=loss"], ["estimate k1 has no effect in the loss", "k3"]),
    ("a gradient where there is none", "ppo",
     ["--model.kl_penalty.estimate=k3_straight_through"], ["rewards have none", "place loss"]),
    ("a weight that is one", "ppo", ["--model.kl_penalty.importance_weighted=true"],
     ["importance_weighted has no effect on rewards"]),
    ("refills of what is not compared", "ppo", ["--model.max_refills=2"],
     ["model.max_refills=2", "GAE does not compare samples", "GRPO or RLOO"]),
    ("fewer than no refills", "ppo", ["--model.max_refills=-1"], ["max_refills", given("-1")]),
    ("a warm-up of a shared critic", "ppo", ["--model.update.critic_warmup_iterations=3"],
     ["critic_warmup_iterations=3", "model.critic to separate"]),
    ("a buffer beyond the limit", "ppo", ["--model.overlong_penalty.buffer=99"],
     ["overlong_penalty.buffer is 99", "max_new_tokens 4"]),
    ("a score that nobody sets", "ppo",
     ["--model.missing_eos.action=filter", "--model.missing_eos.value=3"],
     ["missing_eos.value 3", "no effect with action 'filter'"]),
    ("a weight of no texts", "ppo", ["--model.update.pretraining_coef=2"],
     ["pretraining_coef=2", "data.pretraining, and there are none"]),
    ("a batch of no texts", "ppo", ["--data.pretraining_batch_size=2"],
     ["pretraining_batch_size has no effect without data.pretraining"]),
    ("a value loss without values", "ppo",
     ["--model.advantage=RLOO", "--model.update.value_coef=0.3"],
     ["model.update.value_coef=0.3", "RLOO, which reads no values"]),
    ("a reference that no KL is to", "ppo",
     ["--model.kl_penalty=null", f"--model.reference={MODEL}"],
     ["model.reference", "no effect with model.kl_penalty null"]),
    ("a coefficient of no KL", "ppo", ["--model.kl_penalty=null", "--kl.coefficient=0.3"],
     ["kl: its settings have no effect with model.kl_penalty null"]),
    ("a target beside a controller", "ppo", ["--kl.controller=FixedKL", "--kl.target=3"],
     ["kl: target, coefficient and horizon have no effect beside kl.controller"]),
    ("a horizon of no target", "ppo", ["--kl.target=null", "--kl.horizon=5000"],
     ["kl.horizon=5000", "no effect with kl.target null"]),
    ("a factor of no tightening", "ppo", ["--monitor.tighten_factor=0.3"],
     ["monitor.tighten_factor=0.3", "no effect with monitor.action warn"]),
    ("a clip of values that do not train", "ppo",
     ["--model.update.value_coef=0", "--model.update.value_clip_range=0.5"],
     ["model.update.value_clip_range", "no effect with model.update.value_coef 0"]),
    ("a limit of no check", "ppo",
     ["--self_checks.enabled=false", "--self_checks.max_gradient_growth=50"],
     ["max_gradient_growth", "no effect with self_checks.enabled false"]),
    ("a mean over no length", "ppo",
     ["--model.update.aggregation=ConstantLength", "--model.update.aggregation.length=0"],
     ["aggregation.length", given("0")]),
    ("a scale as it was written before", "ppo",
     "model: {advantage: {class_path: GRPO, init_args: {scale: true}}}",
     ["model.advantage", "scale", "'group', 'batch', 'none'"]),
    ("a group among the callbacks", "ppo", "trainer: {callbacks+: [{class_path: KLControl}]}",
     ["trainer.callbacks", "KLControl", "take it out"]),
    ("a penalty's callback in SFT", "sft",
     "trainer: {callbacks+: [{class_path: KLControl}]}", ["kl_coef", "PPOModule only"]),
    ("a judge that is not there", "ppo", ["--monitor.validation=gold"],
     ["monitor.validation", "'gold'", "model.judges"]),
    ("an action without a judge", "ppo", ["--monitor.action=stop"],
     ["monitor.validation", "'validation'", "which has none"]),
    ("an action that is none", "ppo", ["--monitor.action=panic"], ["monitor.action", "panic"]),
    ("a judge by a name that is taken", "ppo",
     "model: {judges: {kl: {class_path: lit_rlhf.demo.vader.VaderReward}}}",
     ["model.judges.kl", "something else"]),
    ("a table of samples in SFT", "sft",
     "trainer: {callbacks+: [{class_path: SampleTableCallback}]}", ["validation_samples"]),
    ("weights in bf16 computed in float32", "sft", ["--model.optimizer.weights=bf16"],
     ["weights bf16", "trainer.precision bf16-mixed"]),
    ("a schedule of a run without end", "sft", ["--trainer.max_epochs=-1"],
     ["max_epochs -1", "trainer.max_steps"]),
    ("validation after more batches than there are", "sft", ["--trainer.val_check_interval=99"],
     ["trainer.val_check_interval 99 is more than", "check_val_every_n_epoch"]),
    ("clipping by the Trainer in PPO", "ppo", ["--trainer.gradient_clip_val=1.0"],
     ["gradient_clip_val"]),
    ("accumulating by the Trainer in PPO", "ppo", ["--trainer.accumulate_grad_batches=2"],
     ["accumulate_grad_batches"]),
    ("adapters where there are no layers", "sft",
     ["--model.lora.rank=2", "--model.lora.target_modules=no_such_layer"],
     ["lora.target_modules", "no_such_layer"]),
    ("a penalty that is none", "ppo",
     ["--model.missing_eos.action=subtract", "--model.missing_eos.value=-1"],
     ["missing_eos.value", "positive penalty"]),
    ("the tokenizer apart from the model", "sft", [f"--data.tokenizer={MODEL}"],
     ["data.tokenizer", "model.policy"]),
    ("responses beyond the context", "ppo", ["--model.sampling.max_new_tokens=127"],
     ["max_new_tokens=127", "context of 128"]),
    ("a stop string of nothing", "ppo", ['--model.sampling.stop_strings=[""]'], ["stop_strings"]),
    ("a reward function that is not there", "ppo", ["--model.reward.function=nowhere.at_all"],
     ["nowhere.at_all", "cannot be imported", "my_module:my_function"]),
    ("a reward function that is none", "ppo", ["--model.reward.function=math.pi"],
     ["math.pi", "not a function", "my_module:my_function"]),
    # Unknown paths, and models that are something else.
    ("no such model", "sft", ["--model.policy=./nowhere"], ["./nowhere", "no such model folder"]),
    ("no such data", "sft", ["--data.train=data/nowhere.jsonl"], ["nowhere.jsonl", "no such file"]),
    ("no such validation data", "dpo", ["--data.validation=nowhere.jsonl"], ["nowhere.jsonl"]),
    ("no such run to go on with", "sft", ["--ckpt_path=nowhere.ckpt"],
     ["ckpt_path", "nowhere.ckpt"]),
    ("no such reward model", "ppo", [*LEARNED, "--model.reward.model=./nowhere"],
     ["./nowhere", "no such"]),
    ("no such prompts of a normaliser", "reward", ["--model.normalizer.prompts=nowhere.jsonl"],
     ["nowhere.jsonl", "no such file"]),
    ("a checkpoint as a model", "sft", ["--model.policy=runs/sft/checkpoints/last.ckpt"],
     ["last.ckpt", "only continues its own run", "runs/sft/model"]),
    ("a reward model as policy", "sft", ["--model.policy=runs/reward/model"],
     ["runs/reward/model", "a policy is needed"]),
    ("a reward model's folder as policy", "sft", ["--model.policy=./classifier"],
     ["classifier", "a policy is needed", "reward model"]),
    ("a policy as reward", "ppo", [*LEARNED, f"--model.reward.model={MODEL}"],
     ["SmolLM2", "a reward model is needed"]),
    ("an architecture without weights of its own", "sft", ["--model.policy=./no_weights"],
     ["no_weights", "no model could be loaded"]),
    ("weights of another architecture", "sft", ["--model.policy=./other_weights"],
     ["other_weights", "weights"]),
    ("an unknown architecture", "sft", ["--model.policy=./unknown"], ["unknown", "no model"]),
    ("a folder without tokenizer", "sft", ["--model.policy=./no_tokenizer"],
     ["no_tokenizer", "no tokenizer could be loaded"]),
    ("a tokenizer of another model", "sft", ["--model.policy=./large_tokenizer"],
     ["large_tokenizer", "ids up to", "96 embeddings", "own tokenizer"]),
    ("a model with code of its own", "sft", ["--model.policy=./own_code"],
     ["own_code", "trust_remote_code"]),
    ("going on with another phase", "dpo", ["--ckpt_path=sft.ckpt"],
     ["ckpt_path", "of the phase sft", "--model.policy"]),
    ("going on with another model", "sft", ["--ckpt_path=sft.ckpt", "--model.lora.rank=2"],
     ["lacks", "trained weights", "lora setting"]),
]  # fmt: skip


class OnceBuilt(ParserOnly):
    """A command line whose parser serves any number of commands."""

    def run(self, words):
        """Do what the command does, step by step as `LightningCLI` does it."""
        self.trainer = None
        with readable_errors():
            PhaseCLI.parse_arguments(self, self.parser, words)
            self.subcommand = self.config["subcommand"]
            PhaseCLI._set_seed(self)
            PhaseCLI.before_instantiate_classes(self)
            PhaseCLI.instantiate_classes(self)
            self._run_subcommand(self.subcommand)


@pytest.fixture(scope="module")
def clis():
    built = {}

    def get(phase):
        if phase not in built:
            built[phase] = OnceBuilt(*phase_classes(phase), args=[], program=f"lit-rlhf {phase}")
        return built[phase]

    return get


@pytest.fixture(scope="module")
def place(empty_workplace, first_runs):
    """The workplace, with models and checkpoints in it that are not what they should be."""
    folder = empty_workplace.folder
    runs = folder / "runs"
    shutil.copy(runs / "sft/checkpoints/last.ckpt", folder / "sft.ckpt")
    for name in ("no_weights", "other_weights", "no_tokenizer", "large_tokenizer"):
        save_policy(folder / name)
    (folder / "no_weights/model.safetensors").unlink()
    other = tiny_model("gpt2")
    other.save_pretrained(folder / "gpt2")
    weights = (folder / "gpt2/model.safetensors").read_bytes()
    (folder / "other_weights/model.safetensors").write_bytes(weights)
    for file in (folder / "no_tokenizer").glob("token*"):
        file.unlink()
    file = folder / "large_tokenizer/tokenizer.json"
    model = change_json(file)["model"]
    model["vocab"] |= {f"extra{index}": index for index in range(74, 200)}
    change_json(file, model=model)
    save_own_code(folder / "own_code")
    own = {"architectures": ["LlamaForSequenceClassification"]}
    change_json(save_policy(folder / "classifier") / "config.json", **own)
    change_json(save_policy(folder / "unknown") / "config.json", model_type="no_such")
    return empty_workplace


def words_of(phase, made, folder):
    words = ["fit", f"--config={CONFIGS / f'{phase}.yaml'}", *CPU, *SOUND[phase]]
    if isinstance(made, list):
        return [*words, *made]
    (folder / "wrong.yaml").write_text(made)
    return [*words, f"--config={folder / 'wrong.yaml'}"]


@pytest.mark.parametrize(
    ("name", "phase", "made", "phrases"), CASES, ids=[f"{case[1]}: {case[0]}" for case in CASES]
)
def test_a_bad_setting_is_one_error_that_names_it(
    clis, place, tmp_path, name, phase, made, phrases
):
    cli = clis(phase)
    with place.entered(), pytest.raises(LitRLHFError) as caught:
        cli.run(words_of(phase, made, tmp_path))
    message = str(caught.value)
    assert [phrase for phrase in phrases if not is_in(phrase, message)] == []
    assert len(message) < 900
    assert cli.trainer is None or cli.trainer.global_step == 0
    assert not (place.folder / "executed").exists()


@pytest.mark.parametrize("phase", SOUND)
def test_what_stands_before_the_bad_setting_is_sound(clis, place, tmp_path, phase):
    cli = clis(phase)
    fast = [f"--config={CONFIGS / 'debug' / 'fast.yaml'}", "--trainer.callbacks=[]"]
    with place.entered():
        cli.run([*words_of(phase, [], tmp_path), *fast])
    assert cli.trainer.global_step > 0


def test_seeds_that_stay_are_named():
    settings = {"model": {"seed": 0}, "data": {"seed": 3}}
    words = ["fit", "--seed_everything", "2"]
    assert untouched_seeds(words, settings) == (
        "--seed_everything seeds fresh heads and adapters alone; model.seed is 0 and data.seed is 3"
    )
    assert untouched_seeds([*words, "--model.seed=2"], settings) is None
    assert untouched_seeds(["fit", "--config=seed_everything.yaml"], settings) is None


def test_a_run_that_names_no_end_has_one_epoch(clis, place, tmp_path, caplog):
    cli = clis("sft")
    words = words_of("sft", ["--trainer.max_epochs=null"], tmp_path)
    with place.entered():
        fast = ["--trainer.limit_train_batches=1", "--trainer.callbacks=[]"]
        cli.run([*words, *fast, "--seed_everything=2"])
    assert "data.seed is 0" in caplog.text
    assert cli.trainer.current_epoch == cli.trainer.max_epochs == 1
    assert "ends after one epoch" in caplog.text
