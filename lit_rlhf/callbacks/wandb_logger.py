"""Weights & Biases without ceremony: online when a key is there, offline otherwise."""

from __future__ import annotations

import netrc
import os
import sys
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from lit_rlhf.redaction import redact

Mode = Literal["online", "offline", "disabled"]


class WandbAutoLogger(WandbLogger):
    """A `WandbLogger` that never stops a run for lack of a login, and tells where the run goes.

    Online when there is an API key: in `WANDB_API_KEY` (or `WANDB_IDENTITY_TOKEN_FILE`), in the
    settings files of wandb, or in the netrc file where `wandb login` leaves it. Offline
    otherwise: the run is written to `save_dir/wandb` and can be sent later with `wandb sync`.
    `WANDB_MODE`, when set, decides instead.

    Where the command line holds a secret (see `redaction.redact`), wandb keeps no metadata of the
    run: the command line is in them.

    Args:
        project: the project that the run belongs to.
        name: the run's name; None lets wandb choose.
        save_dir: folder of the local files.
        version: the run's identity; the same one resumes a run.
        group: name shared by runs that belong together.
        tags: words to find the run by.
    """

    def __init__(
        self,
        project: str = "lit-rlhf",
        name: str | None = None,
        save_dir: str = ".",
        version: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        mode = run_mode()
        # wandb writes the command line down, which may hold a password.
        words = sys.argv[1:]
        has_secret = any(redact(word) != word for word in words)
        # `mode`, not Lightning's `offline`: that one sets WANDB_MODE for the whole process, too
        # late for a wandb that has read its settings already (as `run_mode` lets it do).
        super().__init__(
            project=project,
            name=name,
            save_dir=save_dir,
            version=version,
            group=group,
            tags=tags,
            mode=mode,
            settings={"x_disable_meta": True} if has_secret else None,
        )
        rank_zero_info(f"Weights & Biases: {mode}, project {project}")
        if mode == "offline":
            runs = Path(save_dir) / "wandb" / "offline-run-*"
            rank_zero_info(f"send the run later with `wandb sync {runs}`")


def run_mode() -> Mode:
    """Decide whether a run is sent: as `WANDB_MODE` says, else online when a key is found."""
    wanted = os.environ.get("WANDB_MODE", "").lower()
    if wanted == "disabled":
        return "disabled"
    if wanted:
        return "offline" if wanted in {"offline", "dryrun"} else "online"
    names = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    has_key = any(map(os.environ.get, names)) or _has_settings_key() or _has_netrc_entry()
    return "online" if has_key else "offline"


def _has_settings_key() -> bool:
    import wandb  # noqa: PLC0415  (a second to import; only where no variable answers)

    settings = wandb.setup().settings
    return bool(settings.api_key or settings.identity_token_file)


def _has_netrc_entry() -> bool:
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    server = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    try:
        entry = netrc.netrc(path).authenticators(urlsplit(server).netloc)
    except (OSError, netrc.NetrcParseError):
        return False  # wandb itself reads no key from such a file
    return bool(entry and entry[2])
