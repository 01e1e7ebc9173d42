import contextlib
import hashlib
import http.server
import json
import re
import threading

import pytest

from lit_rlhf.demo import fetching
from lit_rlhf.demo.fetching import PinnedFile, cache_folder, fetch, index_address
from lit_rlhf.errors import DownloadError

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
PIN = PinnedFile(
    project="some-project",
    requirement="some-project==1.0",
    filename="some_project-1.0.tar.gz",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
)


class Index(http.server.BaseHTTPRequestHandler):
    """A package index with one file, which may break off, ignore ranges or lie."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        if self.path == f"/simple/{PIN.project}/":
            assert self.headers["Accept"] == "application/vnd.pypi.simple.v1+json"
            self._send(200, self.server.page)
        elif self.path == f"/files/{PIN.filename}":
            self._send_file()
        else:
            self._send(404, b"not here")

    def _send_file(self):
        content = self.server.content
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted and self.server.knows_ranges else 0
        if start >= len(content):
            self._send(416, b"")
            return
        rest = content[start:]
        cut = self.server.cuts.pop(0) if self.server.cuts else len(rest)
        self._send(206 if start else 200, rest[:cut], announced=len(rest))

    def _send(self, status, body, announced=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        server.requests, server.cuts = [], []
        server.content, server.knows_ranges = CONTENT, True
        server.index = f"http://127.0.0.1:{server.server_port}/simple"
        files = [
            {"filename": "other.tar.gz", "url": "../../files/other.tar.gz"},
            {"filename": PIN.filename, "url": f"../../files/{PIN.filename}"},
        ]
        server.page = json.dumps({"files": files}).encode()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ranges_asked(server):
    return [wanted for path, wanted in server.requests if path.startswith("/files/")]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_fetches_checks_and_caches(server, tmp_path):
    path = fetch(PIN, tmp_path / "new", index=server.index)
    assert path == tmp_path / "new" / PIN.filename
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == [PIN.filename, PIN.filename + ".checked"]
    asked = len(server.requests)
    assert fetch(PIN, tmp_path / "new", index=server.index) == path
    assert len(server.requests) == asked


def test_goes_on_after_a_dropped_connection(server, tmp_path):
    server.cuts = [1000, 2500]
    path = fetch(PIN, tmp_path, index=server.index, retry_wait_s=0)
    assert path.read_bytes() == CONTENT
    assert ranges_asked(server) == [None, "bytes=1000-", "bytes=3500-"]


def test_goes_on_where_an_earlier_process_was_killed(server, tmp_path):
    (tmp_path / f"{PIN.filename}.part").write_bytes(CONTENT[:4000])
    path = fetch(PIN, tmp_path, index=server.index)
    assert path.read_bytes() == CONTENT
    assert ranges_asked(server) == ["bytes=4000-"]


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    server.knows_ranges = False
    server.cuts = [1000]
    assert fetch(PIN, tmp_path, index=server.index, retry_wait_s=0).read_bytes() == CONTENT


def test_wrong_content_names_both_checksums_and_is_deleted(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(DownloadError, match="wrong content") as caught:
        fetch(PIN, tmp_path, index=server.index)
    text = str(caught.value)
    for part in (
        PIN.filename,
        PIN.sha256,
        hashlib.sha256(server.content).hexdigest(),
        "pip download --no-deps some-project==1.0",
        str(tmp_path),
    ):
        assert part in text
    assert names(tmp_path) == []


def test_a_shorter_file_than_pinned_ends_with_an_error(server, tmp_path):
    server.content = CONTENT[:5000]
    with pytest.raises(DownloadError, match="at most 5000 bytes, expected 10240"):
        fetch(PIN, tmp_path, index=server.index, retry_wait_s=0)
    assert names(tmp_path) == []


def test_a_shorter_file_from_a_server_without_ranges_ends_too(server, tmp_path):
    server.content, server.knows_ranges = CONTENT[:5000], False
    with pytest.raises(DownloadError, match="closed early"):
        fetch(PIN, tmp_path, index=server.index, retry_wait_s=0)


def test_offline_says_what_to_do_and_keeps_what_came(server, tmp_path):
    server.shutdown()
    server.server_close()
    (tmp_path / f"{PIN.filename}.part").write_bytes(CONTENT[:4000])
    with pytest.raises(DownloadError, match="goes on where it stopped") as caught:
        fetch(PIN, tmp_path, index=server.index, retry_wait_s=0)
    assert "Connection refused" in str(caught.value)
    assert f"put {PIN.filename} into {tmp_path}" in str(caught.value).replace("\n", " ")
    assert names(tmp_path) == [f"{PIN.filename}.part"]


def test_a_file_put_there_by_hand_is_checked_and_used(tmp_path, monkeypatch):
    def no_network(*_):
        raise AssertionError("asked the index for a file that is there")

    monkeypatch.setattr(fetching, "_open", no_network)
    (tmp_path / PIN.filename).write_bytes(CONTENT)
    assert fetch(PIN, tmp_path, index="http://127.0.0.1:9/simple").read_bytes() == CONTENT
    assert f"{PIN.filename}.checked" in names(tmp_path)


def test_a_wrong_file_put_there_by_hand_is_refused_and_kept(tmp_path):
    (tmp_path / PIN.filename).write_bytes(b"something else")
    with pytest.raises(DownloadError, match="Delete the file"):
        fetch(PIN, tmp_path, index="http://127.0.0.1:9/simple")
    assert names(tmp_path) == [PIN.filename]


def test_a_truncated_cached_file_is_noticed(server, tmp_path):
    path = fetch(PIN, tmp_path, index=server.index)
    path.write_bytes(CONTENT[:100])
    with pytest.raises(DownloadError, match="wrong content"):
        fetch(PIN, tmp_path, index=server.index)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b"<html></html>", "does not answer in JSON"),
        (b'{"files": []}', "does not list it"),
        (b"[]", "does not answer in JSON"),
    ],
)
def test_an_index_that_cannot_help_is_named(server, tmp_path, page, message):
    server.page = page
    with pytest.raises(DownloadError, match=message):
        fetch(PIN, tmp_path, index=server.index)


def test_a_missing_project_is_not_asked_for_again(server, tmp_path):
    with pytest.raises(DownloadError, match="404"):
        fetch(PIN, tmp_path, index=server.index + "/nowhere")
    assert len(server.requests) == 1


@pytest.mark.parametrize("index", ["file:///opt/simple", "https://me:secret@127.0.0.1/simple"])
def test_refuses_addresses_it_cannot_ask(tmp_path, index):
    with pytest.raises(DownloadError) as caught:
        fetch(PIN, tmp_path, index=index)
    assert "secret" not in str(caught.value)


def test_index_is_the_one_that_pip_asks(monkeypatch):
    monkeypatch.setattr(fetching, "_pip_setting", lambda _: "")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    assert index_address() == "https://pypi.org/simple"
    monkeypatch.setattr(fetching, "_pip_setting", lambda _: "https://mirror.example/simple/")
    assert index_address() == "https://mirror.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://own.example/simple")
    assert index_address() == "https://own.example/simple"


def test_reads_pips_own_settings(monkeypatch, tmp_path):
    settings = tmp_path / "pip.conf"
    settings.write_text("[global]\nindex-url = https://mirror.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    assert index_address() == "https://mirror.example/simple"


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_RLHF_HOME", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LIT_RLHF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lit_rlhf"


def test_certificates_of_both_variables_are_read(monkeypatch, tmp_path):
    read = []

    class Context:
        def load_verify_locations(self, bundle):
            read.append(bundle)

    class StopHereError(Exception):
        pass

    def urlopen(request, timeout, context):
        raise StopHereError

    monkeypatch.setattr(fetching.ssl, "create_default_context", Context)
    monkeypatch.setattr(fetching.urllib.request, "urlopen", urlopen)
    for name in ("SSL_CERT_FILE", "PIP_CERT"):
        bundle = tmp_path / name
        bundle.write_text("")
        monkeypatch.setenv(name, str(bundle))
    with contextlib.suppress(StopHereError):
        fetching._open("https://127.0.0.1/", {})
    assert read == [str(tmp_path / "SSL_CERT_FILE"), str(tmp_path / "PIP_CERT")]
