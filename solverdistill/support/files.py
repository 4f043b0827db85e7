"""Files written whole or not at all, and locks between processes."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file under a temporary name beside `path`, then move it into place."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def check_writable(setting: str, folder: Path) -> None:
    """Make a folder and refuse one that nothing can be written to.

    Raises:
        OSError: it is one; the message names the setting that gives it, and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"{setting}={folder} cannot be written to: {error.strerror or error}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


STALE_AFTER = 1800.0  # seconds after which a lock of another machine, or a temporary file, is taken for abandoned


def expand(path: str | os.PathLike[str]) -> Path:
    """A path as a user writes it, its ``~`` or ``~name`` replaced by that user's home folder.

    Raises:
        ValueError: there is no such user, or it has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise ValueError(
            f"{path} cannot be found: {user} is the home folder of nobody here; write the whole path, or set HOME "
            "(SOLVERDISTILL_HOME for caches)"
        ) from None


def default_root() -> Path:
    """``$SOLVERDISTILL_HOME/targets``, or ``solverdistill/targets`` in the user's cache directory."""
    home = os.environ.get("SOLVERDISTILL_HOME")
    if home:
        return expand(home) / "targets"
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "solverdistill" / "targets"


@contextmanager
def claim(path: Path, stale_after: float = STALE_AFTER) -> Iterator[bool]:
    """Hold a lock file for the time of the block; gives False where another process holds it.

    The lock of a process of this machine that no longer runs is broken at once, any other after `stale_after` seconds.
    """
    claimed = _create(path)
    if not claimed and _abandoned(path, stale_after):
        path.unlink(missing_ok=True)
        claimed = _create(path)
    try:
        yield claimed
    finally:
        if claimed:
            path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    try:
        with path.open("x", encoding="utf-8") as stream:
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, stream)
    except FileExistsError:
        return False
    return True


def _abandoned(path: Path, stale_after: float) -> bool:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        host, pid = owner["host"], int(owner["pid"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):  # not yet written, or cut off
        return _age(path) > stale_after
    if host == socket.gethostname() and os.name == "posix":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it runs, as another user
            pass
    return _age(path) > stale_after


def _age(path: Path) -> float:
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime
    return 0.0
