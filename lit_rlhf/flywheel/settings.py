"""What a run of the flywheel is: the settings of `configs/flywheel.yaml`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_rlhf.errors import ConfigError
from lit_rlhf.feedback.early_stop import EarlyStop
from lit_rlhf.flywheel.choosing import Choice
from lit_rlhf.flywheel.labelers import Labeler, People, SimulatedRaters
from lit_rlhf.flywheel.selection import Acquisition
from lit_rlhf.ranges import require
from lit_rlhf.shipped import name_shipped_files

_JUDGES = ("gate", "reward")  # what a round's evaluation calls its own
_COMPARES = "endpoint:"


@dataclass(frozen=True)
class SamplesConfig:
    """The responses that a round chooses pairs from.

    Attributes:
        policy: "newest" samples from the last promoted policy; "sft" always from the SFT policy,
            which is a baseline: the reward model then never sees what the policy has become.
        num_prompts: of the training prompts, other ones each round as long as there are some.
        num_responses: to each prompt, 2 or more.
        max_new_tokens: a response that reaches it is truncated.
        temperature: of the draw.
    """

    policy: Literal["newest", "sft"] = "newest"
    num_prompts: int = 256
    num_responses: int = 6
    max_new_tokens: int = 128
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require("samples.num_prompts", self.num_prompts, least=1)
        require("samples.num_responses", self.num_responses, least=2)
        require("samples.max_new_tokens", self.max_new_tokens, least=1)
        # At 0 all responses to a prompt are the same, and there is no pair to ask about.
        require("samples.temperature", self.temperature, above=0)


@dataclass(frozen=True)
class PhaseConfig:
    """How a phase is called.

    Attributes:
        phase: of the policy, "ppo" or "dpo"; the reward model's is "reward".
        configs: YAML files of the phase, later ones win.
        options: further options by their dotted names, such as `data.batch_size: 32`.
        start: of the policy. "sft": each round anew from the SFT policy, the most robust start
            (arXiv 2505.18126); "continue": from the last promoted one. The reference is SFT's.
    """

    phase: Literal["reward", "ppo", "dpo"]
    configs: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    start: Literal["sft", "continue"] = "sft"

    def words(self) -> list[str]:
        """Return the options of the command line."""
        return _words(self.configs, self.options)


@dataclass(frozen=True)
class RefreshConfig:
    """SFT again in each round, with the best responses of all rounds among the demonstrations.

    Llama 2 mended forgetting so: the top samples of all earlier rounds joined.

    Attributes:
        base: the model that the SFT policy was made from.
        data: its demonstrations.
        num_best: for each round so far, so many of the best responses of all of them join, at most
            one a prompt, by the newest reward model.
        configs: YAML files of the phase.
        options: further options by their dotted names.
    """

    base: str
    data: str
    num_best: int = 64
    configs: list[str] = field(default_factory=lambda: ["configs/sft.yaml"])
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require("refresh.num_best", self.num_best, least=1)

    def words(self) -> list[str]:
        """Return the options of the command line."""
        return _words(self.configs, self.options)


@dataclass(frozen=True)
class GateConfig:
    """When a policy is promoted, and who says so.

    Attributes:
        judge: `reward:PATH` or `function:DOTTED.PATH`: made from raters and texts that no round
            ever uses.
        final_judges: name -> such a judge: reported, and never asked whether to promote.
        num_prompts: held-out prompts on which policies are compared.
        max_kl: largest KL to SFT, in nats a response; null for any.
        max_length_ratio: largest ratio of the mean length to SFT's, and its inverse the smallest.
        max_perplexity_ratio: largest ratio of the perplexity on `perplexity_data` to SFT's.
        perplexity_data: held-out demonstrations; null measures no perplexity.
        perplexity_rows: take the first so many.
    """

    judge: str
    final_judges: dict[str, str] = field(default_factory=dict)
    num_prompts: int = 128
    max_kl: float | None = None
    max_length_ratio: float = 1.5
    max_perplexity_ratio: float = 1.5
    perplexity_data: str | None = None
    perplexity_rows: int = 256

    def __post_init__(self) -> None:
        require("gate.num_prompts", self.num_prompts, least=2)
        require("gate.perplexity_rows", self.perplexity_rows, least=1)
        require("gate.max_kl", self.max_kl, above=0, is_optional=True)
        require("gate.max_length_ratio", self.max_length_ratio, above=1)
        require("gate.max_perplexity_ratio", self.max_perplexity_ratio, above=1)
        if self.judge.startswith(_COMPARES):
            raise ConfigError(f"gate.judge {self.judge}: only compares; the gate needs scores")
        for name, place in self.final_judges.items():
            key = f"gate.final_judges.{name}"
            if name in _JUDGES or any(sign in name for sign in "/:.="):
                raise ConfigError(f"{key}: choose another name, without / : . and =")
            if place.startswith(_COMPARES):
                raise ConfigError(f"{key} {place}: only compares; the report shows scores")
            if _place(place) == _place(self.judge):
                raise ConfigError(f"{key}: is gate.judge, and a final judge is never asked before")


@dataclass(frozen=True)
class FlywheelSettings:
    """A run of the flywheel.

    Attributes:
        sft: the SFT policy: first policy, reference, and backbone of every reward model.
        prompts: training prompts.
        held_out: prompts that policies are compared on.
        gate: when a policy is promoted.
        folder: of the run.
        store: the feedback store's address; null for `feedback.db` in the folder.
        rounds: how many; more of them later go on with the same run.
        seed: of everything.
        precision: of all phases and forwards; "auto" takes the faster of this machine when the run
            begins, and keeps to it.
        samples: the responses to choose from.
        choice: which pairs people are asked about.
        slots: labelers of each pair.
        early_stop: when a pair needs no further labelers; null always asks all.
        labeler: who judges.
        reward: how the reward model is trained, anew each round from the SFT backbone on the
            judgments of all rounds.
        policy: how the policy is trained.
        refresh: fine-tune the policy's start again with the best responses of all rounds; null to
            start from the SFT policy as it is.
    """

    sft: str
    prompts: str
    held_out: str
    gate: GateConfig
    folder: str = "runs/flywheel"
    store: str | None = None
    rounds: int = 4
    seed: int = 1
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    samples: SamplesConfig = SamplesConfig()
    choice: Choice = Choice()
    slots: int = 3
    early_stop: EarlyStop | None = EarlyStop()
    labeler: Labeler = People()
    reward: PhaseConfig = PhaseConfig(
        "reward", ["configs/reward.yaml", "configs/flywheel/reward.yaml"]
    )
    policy: PhaseConfig = PhaseConfig("ppo", ["configs/ppo.yaml", "configs/flywheel/ppo.yaml"])
    refresh: RefreshConfig | None = None

    def __post_init__(self) -> None:
        require("rounds", self.rounds, least=1)
        require("slots", self.slots, least=1)
        if self.reward.phase != "reward" or self.policy.phase == "reward":
            raise ConfigError("reward.phase must be 'reward', and policy.phase 'ppo' or 'dpo'")
        if self.refresh is not None and self.policy.start == "continue":
            raise ConfigError("policy.start 'continue' leaves what refresh fine-tunes unused")
        gold = self.labeler.gold if isinstance(self.labeler, SimulatedRaters) else None
        if gold is not None and _place(gold) == _place(self.gate.judge):
            raise ConfigError("gate.judge is labeler.gold: no round may use what promotes")
        starts_elsewhere = self.policy.start == "continue" or self.refresh is not None
        if starts_elsewhere and self.policy.phase == "dpo":
            raise ConfigError(
                "policy.start 'continue' and refresh are for ppo: DPO's reference is the policy it "
                "starts from, and the reference stays at SFT"
            )

    @property
    def path(self) -> Path:
        """The folder of the run."""
        return Path(self.folder).expanduser()

    def round_folder(self, number: int) -> Path:
        """Return the folder of a round, from 1."""
        return self.path / f"round-{number:02d}"

    @property
    def store_address(self) -> str:
        """Where the feedback store is."""
        return self.store or str(self.path / "feedback.db")


def _words(configs: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    files = name_shipped_files([f"--config={name}" for name in configs])
    # As JSON, for null, true and lists are not Python's.
    values = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in options.items()
    }
    return [*files, *(f"--{name}={value}" for name, value in values.items())]


def _place(judge: str) -> str:
    return judge.removeprefix("reward:").rstrip("/")


def read_settings(arguments: Sequence[str], program: str) -> FlywheelSettings:
    """Read `--config FILE` and options that go before it.

    Raises:
        ConfigError: an option is unknown, missing, null or out of range.
    """
    # Half a second of imports.
    from jsonargparse import ArgumentParser  # noqa: PLC0415

    from lit_rlhf.config_messages import parse, short_message  # noqa: PLC0415
    from lit_rlhf.nulls import refuse_nulls  # noqa: PLC0415

    parser = ArgumentParser(prog=program, exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(FlywheelSettings, None, sub_configs=True)
    settings = parse(parser, arguments)
    refuse_nulls(FlywheelSettings, settings.as_dict(), "", arguments)
    try:
        made = parser.instantiate(settings)
    except ValueError as error:  # which hides what a part of several types refuses
        raise ConfigError(short_message(str(error))) from error
    values = {name: made[name] for name in FlywheelSettings.__dataclass_fields__}
    return FlywheelSettings(**values)


def read_acquisition(text: str) -> Acquisition:
    """Make an acquisition of its short name, `class_path`, or JSON with `init_args`.

    Raises:
        ConfigError: there is none of this name, or it refuses its settings.
    """
    from jsonargparse import ArgumentError, ArgumentParser  # noqa: PLC0415

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Acquisition, "acquisition")
    try:
        found = parser.instantiate(parser.parse_args([f"--acquisition={text}"]))
    except ArgumentError as error:
        names = ", ".join(sorted(one.__name__ for one in Acquisition.__subclasses__()))
        raise ConfigError(f"--acquisition {text}: is none of {names}: {error}") from error
    made: Acquisition = found.acquisition
    return made
