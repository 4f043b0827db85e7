"""Files of checkpoints: where they lie, and how one that is missing is downloaded.

They lie in ``$SOLVERDISTILL_HOME/checkpoints`` (by default ``~/.cache/solverdistill/checkpoints``) under the names of
their cards. A download goes to ``<name>.part``, is continued where it broke off if the server still has the same file,
is checked against the size and the checksum that are known, and only then gets its name; processes that want the same
file wait for the one that downloads it. With ``SOLVERDISTILL_OFFLINE=1`` nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from solverdistill.support.files import claim, default_root, expand
from solverdistill.teachers.checkpoints.cards import Card

TIMEOUT = 30.0  # seconds without any data
ATTEMPTS = 3  # in a row without any progress
STALE_AFTER = 120.0  # seconds after which the lock of a download that does not move is broken
POLL = 0.5
BLOCK = 1 << 20

log = logging.getLogger(__name__)


def checkpoints_folder() -> Path:
    """Folder of the downloaded checkpoints."""
    return default_root().parent / "checkpoints"


def find(card: Card, folder: str | os.PathLike[str] | None = None) -> Path:
    """Path of a card's file, which must be there.

    Raises:
        FileNotFoundError: it is not; the message says where it comes from and where to put it.
        ValueError: it has another size or checksum than its card states.
    """
    path = _place(card, folder)
    if not path.is_file():
        raise FileNotFoundError(_missing(card, path, "it is not there"))
    _check(card, path)
    return path


def fetch(card: Card, folder: str | os.PathLike[str] | None = None) -> Path:
    """Path of a card's file, which is downloaded if it is not there.

    Raises:
        FileNotFoundError: it is not there and cannot be downloaded; the message says where it comes from and where to
            put it.
        ValueError: it has another size or checksum than its card states.
    """
    path = _place(card, folder)
    if path.is_file() or card.url is None or os.environ.get("SOLVERDISTILL_OFFLINE", "0") not in ("", "0"):
        return find(card, folder)
    lock, part = (path.with_name(f"{path.name}.{ending}") for ending in ("lock", "part"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not path.is_file():
            with claim(lock, stale_after=STALE_AFTER) as claimed:
                if claimed and not path.is_file():
                    _download(card, path, part, lambda: os.utime(lock))
            if not claimed:
                time.sleep(POLL)
    except (HTTPException, OSError) as error:
        why = f"it could not be downloaded ({_reason(error)})"
        if part.is_file() and part.stat().st_size:
            why += f", though {part.stat().st_size / 1e6:.1f} MB are kept and the next attempt continues"
        raise FileNotFoundError(_missing(card, path, why)) from None
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _place(card: Card, folder: str | os.PathLike[str] | None) -> Path:
    return (checkpoints_folder() if folder is None else expand(folder)) / card.file


def _missing(card: Card, path: Path, why: str) -> str:
    return (
        f"{card.name} needs {card.file} ({card.megabytes()}, {card.licence}) but {why}: get it from "
        f"{card.url or card.source} and put it at {path}"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.reason}"
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)


def _check(card: Card, path: Path) -> None:
    """Raise a ValueError if a file is not that of its card."""
    size, advice = path.stat().st_size, "delete it and get it again"
    if card.size is not None and size != card.size:
        raise ValueError(f"{path} has {size} bytes and not {card.size} as the card of {card.name} states; {advice}")
    if card.sha256 is not None and (found := sha256(path)) != card.sha256:
        raise ValueError(
            f"{path} has the sha256 {found} and not {card.sha256} as the card of {card.name} states; {advice}"
        )


def _download(card: Card, path: Path, part: Path, alive: Callable[[], None]) -> None:
    """Download into `part` until it is complete, check it and give it its name."""
    tag = path.with_name(f"{part.name}.tag")
    with _progress(card) as report:

        def step(done: int, total: int | None) -> None:
            alive()
            report(done, total)

        failures = 0
        while True:
            before = part.stat().st_size if part.is_file() else 0
            try:
                if _receive(str(card.url), part, tag, step):
                    break
                failure: Exception = ConnectionError("the connection broke off")
            except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
                failure = error
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                    if error.code < 500:  # asking again does not help
                        raise
            after = part.stat().st_size if part.is_file() else 0
            failures = 0 if after > before else failures + 1
            if failures >= ATTEMPTS:
                raise failure
            time.sleep(POLL * failures)
    tag.unlink(missing_ok=True)
    # A file that is not the card's keeps its name, so that it can be looked at; `find` says what is wrong with it.
    os.replace(part, path)
    _check(card, path)


def _receive(url: str, part: Path, tag: Path, report: Callable[[int, int | None], None]) -> bool:
    """Receive one answer, continuing an unfinished file; True if the file is then complete."""
    have = part.stat().st_size if part.is_file() else 0
    known = tag.read_text(encoding="utf-8") if tag.is_file() else ""
    headers = {"User-Agent": "solverdistill", "Accept-Encoding": "identity"}
    if have and known:
        # Without a tag nobody can say whether the rest is that of the same file.
        headers |= {"Range": f"bytes={have}-", "If-Range": known}
    try:
        answer: HTTPResponse = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True
        part.unlink(missing_ok=True)  # longer than the file, so no beginning of it
        return False
    with answer:
        continued = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if continued else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        # Only a strong tag or a date identifies the bytes.
        found = answer.headers.get("ETag", "")
        strong = found if found and not found.startswith("W/") else answer.headers.get("Last-Modified", "")
        tag.write_text(strong, encoding="utf-8")
        with part.open("ab" if continued else "wb") as stream:
            while block := answer.read(BLOCK):
                stream.write(block)
                have += len(block)
                report(have, total)
        return total is None or have >= total


@contextmanager
def _progress(card: Card) -> Iterator[Callable[[int, int | None], None]]:
    """Show a download: a bar of rich in a terminal, else a line at every tenth."""
    try:
        if not sys.stderr.isatty():
            raise ImportError
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        log.info("downloading %s (%s)", card.url, card.megabytes())
        said = 0

        def say(done: int, total: int | None) -> None:
            nonlocal said
            tenth = 10 * done // total if total else 0
            if tenth > said:
                said = tenth
                log.info("%s: %d %% of %.0f MB", card.file, 10 * tenth, (total or 0) / 1e6)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(card.file, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
