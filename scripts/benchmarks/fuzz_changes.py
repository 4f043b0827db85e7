"""Damage and malice for files: bytes, numbers and structures changed at random, containers closed again afterwards."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

ODD: list[Any] = [
    None,
    True,
    "",
    "x" * 5000,
    -1,
    0,
    1,
    3,
    1e6,
    2**31,
    2**62,
    10**30,
    -(10**400),
    0.5,
    1e-300,
    1e308,
    [],
    {},
]
ODD += [
    [[]],
    {"a": {}},
    [0.1] * 2000,
    ["a"],
    [1, [2]],
    "edm",
    "discrete",
    "../../x",
    "\u0000",
    [2**40],
    [1e308, -1e308],
]
RAW = ["1e400", "-1e999", "NaN", "Infinity", "1" * 5000, "[" * 3000 + "]" * 3000, "[" * 90 + "]" * 90, '{"a":1,"a":2}']
# Fragments of pickles: calls, doubled tuples as keys, states for anything, empty containers, long numbers.
PICKLED = [
    b"cos\nsystem\n(X\x02\x00\x00\x00:;tR",
    b"cbuiltins\neval\n",
    b"2\x86",
    b"2\x862\x862\x862\x86" * 10,
    b"}b",
    b"(]]]]tb",
]
PICKLED += [
    b"}",
    b"\x8f",
    b"(\x91",
    b"]",
    b"a",
    b"u",
    b"s",
    b"R",
    b"\x81",
    b"\x92",
    b"o",
    b"Q",
    b"0",
    b"1",
    b"(",
    b"t",
    b"\x94",
]
PICKLED += [
    b"N",
    b"K\x00",
    b"J\xff\xff\xff\x7f",
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"h\x00",
    b"h\x05",
    b"2",
    b"b",
    b".",
]
PICKLED += [b"ctorch\nSize\n", b"ctorch\ndevice\n", b"c_codecs\nencode\n", b"ctorch._utils\n_rebuild_tensor_v2\n"]
PICKLED += [b"cbuiltins\nset\n", b"cbuiltins\nfrozenset\n", b"cnumpy.core.multiarray\nscalar\n", b"ctorch\nfloat32\n"]


def changed_bytes(data: bytes, dice: random.Random, fragments: list[bytes]) -> bytes:
    """Some bytes overwritten, cut out, doubled, or put in."""
    result = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 16))):
        at, length = dice.randrange(len(result) + 1), dice.choice((1, 1, 2, 4, 8, 64))
        kind = dice.randrange(6)
        if kind == 0:
            result[at : at + length] = dice.randbytes(length)
        elif kind == 1:
            result[at : at + length] = dice.choice((b"\xff", b"\x00", b"\x7f")) * length
        elif kind == 2:
            del result[at : at + length]
        elif kind == 3:
            result[at:at] = result[at : at + length] * dice.choice((1, 2, 50))
        elif kind == 4:
            result[at:at] = dice.choice(fragments) if fragments else dice.randbytes(length)
        elif dice.random() < 0.3:
            del result[at:]
    return bytes(result)


def changed_json(text: str, dice: random.Random) -> str:
    """Some values replaced by odd ones, and now and then the text itself damaged."""
    document = json.loads(text)
    raw = {}
    for count in range(dice.choice((1, 1, 1, 2, 5))):
        places: list[tuple[Any, Any]] = _places(document) or [([0], 0)]
        box, key = dice.choice(places)
        if dice.random() < 0.2:
            mark = f"@raw{count}@"
            raw[json.dumps(mark)] = dice.choice(RAW)
            box[key] = mark
        elif dice.random() < 0.2:
            box[key] = dice.choice(places)[0]
            try:
                json.dumps(document)
            except ValueError:  # it now contains itself
                box[key] = None
        elif isinstance(box[key], (int, float)) and dice.random() < 0.5:
            box[key] = box[key] * dice.choice((-1, 0, 0.999, 2, 1000, 1e30))
        elif isinstance(box, dict) and dice.random() < 0.2:
            del box[key]
        else:
            box[key] = dice.choice(ODD)
    text = json.dumps(document)
    for mark, value in raw.items():
        text = text.replace(mark, value)
    return changed_bytes(text.encode(), dice, []).decode("latin-1") if dice.random() < 0.1 else text


def _places(document: Any) -> list[tuple[Any, Any]]:
    found, pending = [], [document]
    while pending and len(found) < 3000:
        box = pending.pop()
        items = box.items() if isinstance(box, dict) else enumerate(box) if isinstance(box, list) else ()
        for key, value in items:
            found.append((box, key))
            pending.append(value)
    return found


def change_file(path: Path, dice: random.Random) -> None:
    """Change a file in place, in a way that its kind invites; one that was damaged before, byte by byte."""
    data = path.read_bytes()
    try:
        path.write_bytes(_changed_structure(path.suffix, data, dice))
    except (ValueError, KeyError, OverflowError, RecursionError, struct.error, zipfile.BadZipFile):
        path.write_bytes(changed_bytes(data, dice, PICKLED if path.suffix in (".pkl", ".pt") else []))


def _changed_structure(suffix: str, data: bytes, dice: random.Random) -> bytes:
    if data[:2] == b"PK" and dice.random() < 0.8:
        return _changed_archive(data, dice)
    if suffix == ".safetensors" and dice.random() < 0.7:
        length = struct.unpack("<Q", data[:8])[0]
        header = changed_json(data[8 : 8 + length].decode(), dice).encode("utf-8", "replace")
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    if suffix == ".json" and dice.random() < 0.85:
        return changed_json(data.decode(), dice).encode("utf-8", "replace")
    raise ValueError("byte by byte")


def _changed_archive(data: bytes, dice: random.Random) -> bytes:
    """An archive with one member changed, or blown up, and a right checksum."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickles = [name for name in members if name.endswith("data.pkl")]
    chosen = dice.choice(pickles if pickles and dice.random() < 0.7 else list(members))
    if dice.random() < 0.02:
        members[chosen] += bytes(300 << 20)
    else:
        members[chosen] = changed_bytes(members[chosen], dice, PICKLED if pickles else [])
    if dice.random() < 0.05:
        members[f"{chosen}.more.npy"] = members[chosen]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in members.items():
            kind = zipfile.ZIP_DEFLATED if len(content) > 1 << 20 else None
            archive.writestr(name, content, compress_type=kind, compresslevel=1)
    return stream.getvalue()


def change(seed: Path, place: Path, dice: random.Random) -> None:
    """Copy a file or a folder to `place` and change it, or one file of it."""
    if seed.is_dir():
        shutil.copytree(seed, place)
        files = sorted(file for file in place.rglob("*") if file.is_file())
        for _ in range(dice.choice((1, 1, 2))):
            change_file(dice.choice(files), dice)
    else:
        shutil.copyfile(seed, place)
        change_file(place, dice)
