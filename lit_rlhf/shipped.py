"""The YAML files that come with the package, found from any folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.errors import ConfigError


def configs_folder() -> Path:
    """Return the folder of the shipped YAML files: inside the package, or beside it.

    Raises:
        ConfigError: there is none.
    """
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "sft.yaml").exists():
            return folder
    raise ConfigError(f"the YAML files of the phases are not beside {package}; install lit-rlhf")


def name_shipped_files(arguments: Sequence[str]) -> list[str]:
    """Replace each `configs/...` that is not in the working folder by the shipped file.

    So `--config configs/sft.yaml` works from any folder, and a copy of your own comes first.

    Args:
        arguments: of the command line.
    """
    return [_shipped(word) for word in arguments]


def _shipped(word: str) -> str:
    option, is_joined, value = word.rpartition("=")
    if not value.startswith("configs/") or Path(value).exists():
        return word
    file = configs_folder() / value.removeprefix("configs/")
    return f"{option}{is_joined}{file}" if file.is_file() else word
