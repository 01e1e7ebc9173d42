"""What the words of the command line name: policies, judges, files of options."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from lit_rlhf.data.chat_template import read_template_options
from lit_rlhf.errors import ConfigError
from lit_rlhf.evaluation.endpoint import Endpoint
from lit_rlhf.evaluation.pairwise import PairJudge
from lit_rlhf.models.handover import check_kind
from lit_rlhf.rewards import FunctionReward, LearnedReward, RewardSource
from lit_rlhf.shipped import name_shipped_files


class Named(NamedTuple):
    """A name and what it names."""

    name: str
    source: str


class JudgeOptions(NamedTuple):
    """Judges by name, by what they can do.

    Attributes:
        rewards: those that score each response.
        pair_judges: those that compare two.
    """

    rewards: dict[str, RewardSource]
    pair_judges: dict[str, PairJudge]


def read_named(words: Sequence[str], what: str) -> list[Named]:
    """Part `NAME=SOURCE`; a word without a name is its own.

    Raises:
        ConfigError: two have the same name.
    """
    named = []
    for word in words:
        name, mark, source = word.partition("=")
        # An equals sign inside a path is part of it.
        has_name = bool(mark) and bool(name) and not any(sign in name for sign in "/:.")
        named.append(Named(name, source) if has_name else Named(word, word))
    names = [name for name, _ in named]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two {what} are named '{doubled}': name them apart, as NAME=SOURCE")
    return named


def read_judges(words: Sequence[str], options: argparse.Namespace) -> JudgeOptions:
    """Make the judges that `--judge [NAME=]KIND:WHERE` names.

    `reward:PATH` (or the path alone) is a reward model, `function:DOTTED.PATH` a Python function,
    `endpoint:ADDRESS#MODEL` a language model behind an OpenAI-compatible API.

    Args:
        words: of the options.
        options: the parsed command line, for the settings of reward models and endpoints.

    Raises:
        ConfigError: a kind is unknown, a function cannot be imported, an endpoint has no model.
        CheckpointError: a reward model is not there, or is a policy.
    """
    judges = JudgeOptions({}, {})
    for name, source in read_named(words, "judges"):
        kind, where = _split_kind(source, ("reward", "function", "endpoint"))
        if kind == "endpoint":
            judges.pair_judges[name] = _pair_judge(where, options)
        else:
            judges.rewards[name] = _make_reward(kind, where, options, normalize=True)
    return judges


def read_rewards(words: Sequence[str], options: argparse.Namespace) -> dict[str, RewardSource]:
    """Make the rewards that `[NAME=]SOURCE` names, by name, with raw scores.

    Args:
        words: of the command line: reward models, or `function:DOTTED.PATH`.
        options: the parsed command line, for the settings of reward models.

    Raises:
        ConfigError: a function cannot be imported.
        CheckpointError: a reward model is not there, or is a policy.
    """
    return {
        name: _make_reward(*_split_kind(source, ("reward", "function")), options, normalize=False)
        for name, source in read_named(words, "models")
    }


def read_reward(word: str, options: argparse.Namespace) -> RewardSource:
    """Make the reward that a word names: as for `read_judges`, or a YAML file.

    Args:
        word: a reward model, `function:DOTTED.PATH`, or a file with `class_path` and `init_args`,
            maybe under `model: reward:` as in PPO's files.
        options: the parsed command line, for the settings of reward models.

    Raises:
        ConfigError: the file holds no reward, or a function cannot be imported.
        CheckpointError: a reward model is not there, or is a policy.
    """
    if Path(word).suffix in (".yaml", ".yml"):
        return _reward_of_file(word)
    return _make_reward(*_split_kind(word, ("reward", "function")), options, normalize=True)


def _reward_of_file(path: str) -> RewardSource:
    from jsonargparse import ArgumentError, ArgumentParser  # noqa: PLC0415 - for this alone

    (path,) = name_shipped_files([path])
    content = _read_yaml(Path(path))
    settings = content.get("model", content)
    settings = settings.get("reward", settings) if isinstance(settings, Mapping) else settings
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=RewardSource, required=True)
    try:
        parsed = parser.parse_object({"reward": settings})
        reward: RewardSource = parser.instantiate(parsed).reward
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"--reward {path}: {error}") from error
    return reward


def with_config(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Replace `--config FILE` by the options that the file holds; those of the line come last.

    The file's keys are the long options without dashes in front (`max-new-tokens` or
    `max_new_tokens`) and the positional ones (`policies`, `models`), as a list or name -> source.

    Raises:
        ConfigError: the file is not there, is not a mapping, or has a key that is not an option.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", action="append", default=[])
    found, rest = finder.parse_known_args(list(words))
    options: list[str] = []
    positionals: list[str] = []
    for name in found.config:
        for key, value in _read_yaml(Path(name)).items():
            action = _action_of(parser, str(key), name)
            if action.type is read_template_options and isinstance(value, Mapping):
                value = json.dumps(value)  # noqa: PLW2901 - as the command line has it
            if action.option_strings:
                options += [f"{action.option_strings[-1]}={word}" for word in _as_words(value)]
            else:
                positionals += _as_words(value)
    return [*options, *positionals, *rest]


def _split_kind(source: str, kinds: Sequence[str]) -> tuple[str, str]:
    kind, mark, where = source.partition(":")
    return (kind, where) if mark and kind in kinds else ("reward", source)


def _make_reward(
    kind: str, where: str, options: argparse.Namespace, *, normalize: bool
) -> RewardSource:
    if kind == "function":
        return FunctionReward(where)
    check_kind(where, "reward")
    return LearnedReward(
        where,
        template=options.template,
        template_options=options.template_options,
        max_length=options.max_length,
        normalize=normalize,
    )


def _pair_judge(where: str, options: argparse.Namespace) -> PairJudge:
    address, mark, model = where.partition("#")
    if not mark or not model:
        raise ConfigError(
            f"judge endpoint:{where}: name the model behind a '#', as in "
            "endpoint:http://127.0.0.1:8000/v1#my-model"
        )
    endpoint = Endpoint(
        address,
        model,
        key_variable=options.endpoint_key_variable,
        timeout_s=options.endpoint_timeout,
    )
    return PairJudge(endpoint, num_connections=options.endpoint_connections)


def _read_yaml(path: Path) -> Mapping[str, object]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected options as KEY: VALUE")
    return content


def _action_of(parser: argparse.ArgumentParser, key: str, file: str) -> argparse.Action:
    # argparse has no public list of them.
    actions = {action.dest: action for action in parser._actions}
    actions = {name: actions[name] for name in actions if name not in ("help", "config")}
    wanted = key.replace("-", "_")
    if wanted not in actions:
        raise ConfigError(f"--config {file}: no option '{key}'; there are: {', '.join(actions)}")
    return actions[wanted]


def _as_words(value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{name}={source}" for name, source in value.items()]
    if isinstance(value, list):
        return [str(item) for item in value]
    return [] if value is None else [str(value)]
