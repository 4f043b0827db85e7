"""An on-disk cache of tensors that are expensive to make: sharded, checksummed, shared by processes and runs.

One folder per *key*, the hash of the facts that decide the numbers::

    <root>/<name>-<key>/manifest.json               the facts, and size and SHA-256 of every finished shard
                        shard-00000003.safetensors  samples 3 n to 4 n - 1, n samples per shard
                        shard-00000003.lock         a process is making it

A shard holds the same samples whatever the number of samples asked for, so that a longer run extends the cache of a
shorter one. Files are written under a temporary name and renamed: after a crash there is a whole shard or none. A shard
whose checksum is not the manifest's is made again.

Locks are files created exclusively, which works on network file systems too. They share the work out, they do not
protect the data: a lock that is broken by mistake costs the making of a shard twice, the second time with the same
content. Nothing here talks to other processes, so a process may leave, die or join at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverdistill.support.files import STALE_AFTER, _age, claim, expand, write_atomically
from solverdistill.support.json_files import read_json_object

FORMAT = "solverdistill-cache/1"


UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
POLL = 0.2  # seconds between looks at shards that other processes are making


log = logging.getLogger(__name__)


Maker = Callable[[int], Mapping[str, Tensor]]


class ShardCache:
    """Tensors of numbered samples on disk, made shard by shard.

    Args:
        root: Folder of all caches.
        name: Beginning of this cache's folder name, for people.
        facts: JSON-able facts that decide the numbers; another fact is another folder.
        samples: Samples per shard, the first dimension of every tensor.
    """

    def __init__(self, root: str | os.PathLike[str], name: str, facts: Mapping[str, Any], samples: int) -> None:
        self.facts: dict[str, Any] = {"format": FORMAT, "samples_per_shard": samples, **facts}
        self.samples = samples
        key = hashlib.sha256(json.dumps(self.facts, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]
        self.folder = expand(root) / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{key}"

    def path(self, shard: int) -> Path:
        """File of a shard."""
        return self.folder / f"shard-{shard:08d}.safetensors"

    def fill(
        self, shards: Sequence[int], make: Maker, report: Callable[[int], None] | None = None, each: int = 0
    ) -> list[int]:
        """Make the shards that are missing or damaged; return when all are there.

        Several processes may fill a cache at once: each makes shards that no other is making, and waits at the end for
        those that others still make.

        Args:
            shards: Numbers of the wanted shards.
            make: Makes the tensors of a shard, the same ones in every process.
            report: Called with the number of shards that are there.
            each: Bytes of a shard, where they are known: room for all is looked for before the first one is made.
        Returns:
            The shards that were found intact.
        Raises:
            ValueError: the folder cannot be written, or there is no room in it.
        """
        report = report or (lambda done: None)
        self._open()
        entries, found, waiting = self._entries(), [], []
        for shard in shards:
            (found if self._intact(shard, entries) else waiting).append(shard)
            report(len(found))
        self.look_for_room(each * len(waiting))
        done = len(found)
        while waiting:
            left = []
            for shard in waiting:
                with self._claim(shard) as claimed:
                    if claimed and not self._intact(shard, self._entries(), complain=True):
                        self._write(shard, make(shard))
                if claimed:
                    done += 1
                    report(done)
                else:
                    left.append(shard)
            if len(left) == len(waiting):
                time.sleep(POLL)
            waiting = left
        return found

    def missing(self, shards: Sequence[int]) -> list[int]:
        """Shards that are not there; contents are not looked at, and nothing is written."""
        entries = self._entries()
        return [shard for shard in shards if f"{shard:08d}" not in entries or not self.path(shard).is_file()]

    def look_for_room(self, size: int) -> None:
        """Refuse a disk that has no room for so many bytes.

        Raises:
            ValueError: there is less.
        """
        if size > self._room():
            raise self._full("no room for what is missing", size)

    def read(self, shard: int) -> dict[str, Tensor]:
        """Tensors of a shard, mapped into memory: only what is looked at is read."""
        from safetensors import safe_open

        with safe_open(self.path(shard), framework="pt") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a dict)

    def take(self, index: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Rows of some samples, in the order of `index`, read from the shards that hold them."""
        rows: dict[str, Tensor] = {}
        for shard in (index // self.samples).unique().tolist():
            positions = (index // self.samples == shard).nonzero()[:, 0]
            tensors = self.read(shard)
            for name in names:
                part = tensors[name][index[positions] % self.samples]
                if name not in rows:
                    rows[name] = torch.empty(len(index), *part.shape[1:], dtype=part.dtype)
                rows[name][positions] = part
        return rows

    def size(self) -> int:
        """Bytes of all finished shards."""
        return sum(entry["bytes"] for entry in self._entries().values())

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise self._refusal(str(reason)) from None
        for left_over in self.folder.glob(".shard-*"):  # of a killed process
            if _age(left_over) > STALE_AFTER:
                with suppress(OSError):
                    left_over.unlink()

    @contextmanager
    def _claim(self, shard: int) -> Iterator[bool]:
        """`claim` a shard."""
        with ExitStack() as stack:
            try:
                claimed = stack.enter_context(claim(self.path(shard).with_suffix(".lock")))
            except OSError as error:
                raise self._refusal(_reason(error)) from None
            yield claimed

    def _room(self) -> int:
        """Bytes that this user may still write."""
        return shutil.disk_usage(next(folder for folder in (self.folder, *self.folder.parents) if folder.is_dir())).free

    def _full(self, reason: str, needed: int) -> ValueError:
        return self._refusal(f"{reason}: {size_of(needed)} needed, {size_of(self._room())} left")

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(
            f"the cache {self.folder} cannot be written ({reason}); set targets.cache to another folder or to null"
        )

    def _manifest(self) -> dict[str, Any]:
        try:
            shards = read_json_object(self.folder / "manifest.json").get("shards")
        except FileNotFoundError:
            return {**self.facts, "shards": {}}
        except ValueError:
            shards = None
        known = shards if isinstance(shards, dict) else {}
        known = {shard: entry for shard, entry in known.items() if _is_entry(entry)}
        if known != shards:
            log.warning("%s is damaged; its shards are made again", self.folder / "manifest.json")
        return {**self.facts, "shards": known}

    def _entries(self) -> dict[str, dict[str, Any]]:
        return self._manifest()["shards"]

    def _intact(self, shard: int, entries: Mapping[str, Mapping[str, Any]], complain: bool = False) -> bool:
        path, entry = self.path(shard), entries.get(f"{shard:08d}")
        if entry is None or not path.is_file():
            return False
        if path.stat().st_size == entry.get("bytes") and _sha256(path) == entry.get("sha256"):
            return True
        if complain:
            log.warning("%s is damaged (its checksum is not the manifest's); it is made again", path)
        return False

    def _write(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        from safetensors import SafetensorError

        try:
            self._store(shard, tensors)
        except (OSError, SafetensorError) as error:
            raise self._full(_reason(error), sum(tensor.nbytes for tensor in tensors.values())) from None

    def _store(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save_file

        path = self.path(shard)
        temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
            entry = {"sha256": _sha256(temporary), "bytes": temporary.stat().st_size}
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        while True:
            with claim(self.folder / "manifest.lock", stale_after=60.0) as claimed:
                if claimed:
                    manifest = self._manifest()
                    manifest["shards"] = dict(sorted({**manifest["shards"], f"{shard:08d}": entry}.items()))
                    write_atomically(self.folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
                    return
            time.sleep(0.01)


def _is_entry(entry: Any) -> bool:
    """Whether this is what a manifest says of a shard."""
    return isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and type(entry.get("bytes")) is int


def size_of(number: int) -> str:
    """Bytes as people write them."""
    unit = next((unit for unit in ("GB", "MB") if number >= UNITS[unit]), "kB")
    return f"{number / UNITS[unit]:.3g} {unit}"


def _reason(error: Exception) -> str:
    """What the system says, which safetensors wraps: "Error while serializing: I/O error: <it> (os error 28)"."""
    if isinstance(error, OSError):
        return str(error.strerror or error)
    return re.sub(r" \(os error \d+\)", "", str(error)).rsplit(": ", 1)[-1]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
