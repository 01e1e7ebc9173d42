"""What the words of the command line name: policies, judges, files of options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lit_rlhf.errors import ConfigError
from lit_rlhf.evaluation.endpoint import Endpoint
from lit_rlhf.evaluation.pairwise import PairJudge
from lit_rlhf.models.handover import check_kind
from lit_rlhf.rewards import FunctionReward, LearnedReward, RewardSource
from lit_rlhf.shipped import name_shipped_files

# Options that take several words, each of which may have a name.
_SEVERAL = ("policies", "models", "judge", "samples")


class Named(NamedTuple):
    """A name and what it names."""

    name: str
    source: str


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


def read_judges(
    words: Sequence[str], options: argparse.Namespace
) -> tuple[dict[str, RewardSource], dict[str, PairJudge]]:
    """Make the judges that `--judge [NAME=]KIND:WHERE` names.

    `reward:PATH` (or the path alone) is a reward model, `function:DOTTED.PATH` a Python function,
    `endpoint:ADDRESS#MODEL` a language model behind an OpenAI-compatible API.

    Args:
        words: of the options.
        options: the parsed command line, for the settings of reward models and endpoints.

    Returns:
        By name, those that score each response, and those that compare two.

    Raises:
        ConfigError: a kind is unknown, a function cannot be imported, an endpoint has no model.
        CheckpointError: a reward model is not there, or is a policy.
    """
    rewards: dict[str, RewardSource] = {}
    pair_judges: dict[str, PairJudge] = {}
    for name, source in read_named(words, "judges"):
        kind, where = _split_kind(source, ("reward", "function", "endpoint"))
        if kind == "endpoint":
            pair_judges[name] = _pair_judge(where, options)
        else:
            rewards[name] = _make_reward(kind, where, options, normalize=True)
    return rewards, pair_judges


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
    (path,) = name_shipped_files([path])
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--reward {path}: cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"--reward {path}: expected options as KEY: VALUE")
    settings = settings.get("model", settings)
    settings = settings.get("reward", settings) if isinstance(settings, dict) else settings
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=RewardSource, required=True)
    try:
        parsed = parser.parse_object({"reward": settings})
        reward: RewardSource = parser.instantiate(parsed).reward
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"--reward {path}: {error}") from error
    return reward


def read_option_file(text: str) -> object:
    """Read a file of options, and what the parser takes for YAML on the command line.

    Keys may have dashes as on the command line. Where several words may stand, a mapping of names
    to sources stands for `NAME=SOURCE` each.
    """
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        return content
    named = {str(key).replace("-", "_"): value for key, value in content.items()}
    return {
        key: _as_words(value) if key in _SEVERAL else value
        for key, value in named.items()
        if value is not None
    }


def _as_words(value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{name}={source}" for name, source in value.items()]
    return [str(item) for item in (value if isinstance(value, list) else [value])]


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
