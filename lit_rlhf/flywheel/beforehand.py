"""What a run looks for before its first round: the files and models that its later steps need.

What is missing is told at once, by its setting, and not when people have judged for days.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lit_rlhf.data.sources import open_records, read_records
from lit_rlhf.errors import ConfigError, DataError, about_setting
from lit_rlhf.evaluation.responses import prompt_key, read_prompts
from lit_rlhf.feedback.records import parse_demonstration
from lit_rlhf.flywheel.phases import phase_words
from lit_rlhf.flywheel.settings import FlywheelSettings, GateConfig
from lit_rlhf.models.handover import check_model
from lit_rlhf.rewards.importing import find_in_working_folder, import_function
from lit_rlhf.shipped import name_shipped_files


def check_settings(settings: FlywheelSettings) -> None:
    """Refuse at once what would be found wanting in the middle of a round.

    Raises:
        ConfigError: what a setting names is not there or cannot be read; the setting is named.
        DataError: there are no two held-out prompts, or some are training prompts.
    """
    try:
        settings.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"folder {settings.path}: cannot be made: {error.strerror}") from error
    phases = {"reward": settings.reward, "policy": settings.policy, "refresh": settings.refresh}
    for key, phase in phases.items():
        for file in name_shipped_files([] if phase is None else phase.configs):
            if not Path(file).expanduser().is_file():
                raise ConfigError(f"{key}.configs: there is no file {file}")
    with about_setting("sft"):
        check_model(settings.sft, "policy")
    _check_prompts(settings)
    _check_gate(settings.gate)
    if settings.refresh is not None:
        with about_setting("refresh.base"):
            check_model(settings.refresh.base, "policy")
        with about_setting("refresh.data"):
            open_records(settings.refresh.data)
    settings.labeler.check(settings.slots)


def _check_prompts(settings: FlywheelSettings) -> None:
    with about_setting("held_out"):
        held_out = read_prompts(settings.held_out, settings.gate.num_prompts)
    with about_setting("prompts"):
        known = {prompt_key(row.prompt) for row in read_prompts(settings.prompts)}
    if doubled := sum(prompt_key(row.prompt) in known for row in held_out):
        raise DataError(
            f"held_out {settings.held_out}: {doubled} of these prompts are in {settings.prompts}, "
            "too; compare policies on prompts that none learns from"
        )
    if len(held_out) < 2:
        raise DataError(f"held_out {settings.held_out}: needs two prompts, to tell gain from luck")


def _check_gate(gate: GateConfig) -> None:
    judges = {f"gate.final_judges.{name}": judge for name, judge in gate.final_judges.items()}
    for key, judge in {"gate.judge": gate.judge, **judges}.items():
        kind, _, place = judge.partition(":")
        with about_setting(key):
            if kind == "function":
                find_in_working_folder()  # as the process that judges does
                import_function(place)
            else:
                check_model(judge.removeprefix("reward:"), "reward")
    if gate.perplexity_data is not None:
        with about_setting("gate.perplexity_data"):
            for row in read_records(gate.perplexity_data, "validation")[: gate.perplexity_rows]:
                parse_demonstration(*row)


def check_options(settings: FlywheelSettings) -> None:
    """Refuse options of phases that these would refuse to read when it is their turn.

    Raises:
        ConfigError: one is unknown or has the wrong type; the phase's key is named.
    """
    from lit_rlhf import phase_cli  # noqa: PLC0415 - seconds of imports

    chosen = replace(settings, precision="32-true")  # "auto" is none of a phase's
    words = phase_words(chosen, settings.round_folder(1), settings.sft, settings.seed)
    for key, (phase, *options) in words.items():
        with about_setting(key):
            phase_cli.check_options(phase, options)
