"""Cards and the cache of checkpoint files, against a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from solverdistill.teachers.checkpoints import download as files
from solverdistill.teachers.checkpoints.cards import Card, card, cards, parse
from solverdistill.teachers.checkpoints.download import checkpoints_folder, fetch, find

CONTENT = bytes(range(256)) * 20_000  # 5.1 MB


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, with ranges, and breaks the connection off where it is told to."""

    content: ClassVar[bytes] = CONTENT
    tag: ClassVar[str | None] = '"one"'
    break_after: ClassVar[list[int]] = []  # bytes to send before breaking off, one entry per request
    ranges: ClassVar[list[str | None]] = []  # what was asked for
    failures: ClassVar[list[int]] = []  # statuses to answer first

    def do_GET(self) -> None:
        cls = type(self)
        cls.ranges.append(self.headers.get("Range"))
        if cls.failures:
            self.send_error(cls.failures.pop(0))
            return
        start = 0
        if self.headers.get("Range") and self.headers.get("If-Range") == cls.tag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(cls.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(cls.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = cls.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(cls.content) - 1}/{len(cls.content)}")
        self.send_header("Content-Length", str(len(body)))
        if cls.tag:
            self.send_header("ETag", cls.tag)
        self.end_headers()
        self.wfile.write(body[: cls.break_after.pop(0)] if cls.break_after else body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    """Card of a file on a fresh server."""
    monkeypatch.setattr(files, "POLL", 0.01)
    monkeypatch.delenv("SOLVERDISTILL_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    for name, value in (("content", CONTENT), ("tag", '"one"'), ("break_after", []), ("ranges", []), ("failures", [])):
        monkeypatch.setattr(Server, name, value)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield Card(
            name="net",
            url=f"http://127.0.0.1:{running.server_port}/folder/net.pkl",
            licence="MIT",
            source="a paper",
            sha256=hashlib.sha256(CONTENT).hexdigest(),
            size=len(CONTENT),
        )
        running.shutdown()
        thread.join()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_downloaded_once(server: Card, tmp_path: Path) -> None:
    path = fetch(server, tmp_path / "new")
    assert path == tmp_path / "new" / "net.pkl" and path.read_bytes() == CONTENT
    assert fetch(server, tmp_path / "new") == find(server, tmp_path / "new") == path
    assert Server.ranges == [None] and left(tmp_path / "new") == ["net.pkl"]


def test_a_broken_connection_is_continued(server: Card, tmp_path: Path) -> None:
    Server.break_after = [3_000_000, 1_500_000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert Server.ranges == [None, "bytes=3000000-", "bytes=4500000-"] and left(tmp_path) == ["net.pkl"]


def test_the_next_run_continues(server: Card, tmp_path: Path) -> None:
    Server.break_after = [2_000_000, 0, 0, 0]
    with pytest.raises(FileNotFoundError, match=r"2\.0 MB are kept and the next attempt continues: get it from http"):
        fetch(server, tmp_path)
    assert left(tmp_path) == ["net.pkl.part", "net.pkl.part.tag"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert Server.ranges[-1] == "bytes=2000000-" and left(tmp_path) == ["net.pkl"]


def test_a_file_that_changed_in_between_starts_again(server: Card, tmp_path: Path) -> None:
    Server.break_after = [2_000_000, 0, 0, 0]
    with pytest.raises(FileNotFoundError):
        fetch(server, tmp_path)
    Server.tag, Server.content = '"two"', CONTENT[::-1]
    other = replace(server, sha256=hashlib.sha256(CONTENT[::-1]).hexdigest())
    assert fetch(other, tmp_path).read_bytes() == CONTENT[::-1]


def test_a_beginning_without_a_tag_starts_again(server: Card, tmp_path: Path) -> None:
    (tmp_path / "net.pkl.part").write_bytes(b"of another file")
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert Server.ranges == [None]


@pytest.mark.parametrize("excess", [0, 7])
def test_a_beginning_that_is_all_or_too_long(excess: int, server: Card, tmp_path: Path) -> None:
    (tmp_path / "net.pkl.part").write_bytes(CONTENT + b"x" * excess)
    (tmp_path / "net.pkl.part.tag").write_text('"one"')
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert len(Server.ranges) == (2 if excess else 1)


def test_a_busy_server_is_asked_again_and_a_missing_page_is_not(server: Card, tmp_path: Path) -> None:
    Server.failures = [503, 503]
    assert fetch(server, tmp_path / "a").read_bytes() == CONTENT
    Server.failures, Server.ranges = [404], []
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded \(404 Not Found\): get it from http"):
        fetch(server, tmp_path / "b")
    assert len(Server.ranges) == 1 and left(tmp_path / "b") == []


def test_another_checksum_or_size_is_refused(server: Card, tmp_path: Path) -> None:
    wrong = replace(server, sha256="0" * 64)
    for _ in range(2):  # downloaded, and found
        with pytest.raises(ValueError, match=rf"net.pkl has the sha256 {server.sha256} and not 0+ as the card of net"):
            fetch(wrong, tmp_path)
    assert Server.ranges == [None]
    with pytest.raises(ValueError, match="has 5120000 bytes and not 17 as the card of net states; delete it"):
        find(replace(server, size=17), tmp_path)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_offline_and_missing_are_one_sentence(server: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = f"net needs net.pkl (about 5 MB, MIT) but it is not there: get it from {server.url} and put it at "
    with pytest.raises(FileNotFoundError) as caught:
        find(server, tmp_path)
    assert str(caught.value) == f"{sentence}{tmp_path / 'net.pkl'}"
    monkeypatch.setenv("SOLVERDISTILL_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="but it is not there"):
        fetch(server, tmp_path)
    assert Server.ranges == []
    monkeypatch.delenv("SOLVERDISTILL_OFFLINE")
    unreachable = replace(server, url="http://127.0.0.1:9/net.pkl")
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded \(.*refused\): get it from http"):
        fetch(unreachable, tmp_path)
    by_hand = Card(name="net", url=None, file="net.pt", licence="MIT", source="a page with a login")
    with pytest.raises(FileNotFoundError, match=r"of unknown size.* get it from a page with a login and put it at"):
        fetch(by_hand, tmp_path)


def test_two_that_want_the_same_file_download_it_once(server: Card, tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(server, tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "net.pkl"] * 3 and Server.ranges == [None]
    assert left(tmp_path) == ["net.pkl"]


def test_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLVERDISTILL_HOME", str(tmp_path))
    assert checkpoints_folder() == tmp_path / "checkpoints"
    monkeypatch.delenv("SOLVERDISTILL_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert checkpoints_folder() == tmp_path / "cache" / "solverdistill" / "checkpoints"


def test_cards_of_the_package() -> None:
    every = cards()
    assert {"edm_cifar", "edm_cifar_cond_ve", "edm_imagenet64", "baseline_cifar_ve"} <= set(every)
    assert len({entry.file for entry in every.values()}) == len(every)
    for name, entry in every.items():
        assert entry.name == name and entry.licence and entry.source
        assert entry.url is None or entry.url.startswith("https://")
    assert card("edm_cifar").file == "edm-cifar10-32x32-uncond-vp.pkl"
    assert card("edm_cifar").megabytes() == "about 223 MB"
    with pytest.raises(ValueError, match="checkpoint 'edm_cifr' has no card; known: .*edm_cifar"):
        card("edm_cifr")


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"sha": "00"}, "card net lacks or has facts that it must not have: sha"),
        ({"licence": None}, "licence of Card must be a word"),
        ({"sha256": "AB"}, "sha256 'AB', which is not 64"),
        ({"file": "../net.pkl"}, "file name '../net.pkl', which is no plain name"),
        ({"url": None}, "neither a url nor a file name"),
        ({"parameters": "many"}, "parameters of Card must be an integer"),
    ],
)
def test_wrong_cards_are_named(facts: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=sentence):
        parse({"net": {"url": "https://example.org/net.pkl", "licence": "MIT", "source": "a paper", **facts}})
    with pytest.raises(ValueError, match="licence, source"):
        parse({"net": {"url": "https://example.org/net.pkl"}})
