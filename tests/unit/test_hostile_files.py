"""Files that ask for more than they hold: refused in one sentence, at once, before they take memory or time."""

from __future__ import annotations

import json
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from solverdistill import read_solver, save_solver
from solverdistill.evaluation.real_images import open_images
from solverdistill.families import build
from solverdistill.importers import Settings, import_solver
from solverdistill.networks.preconditioning import Preconditioned
from solverdistill.networks.song_unet import SongUNet
from solverdistill.support.json_files import parse_json
from solverdistill.support.limits import MAX_OBJECTS, Allowance, Oversized, shown
from solverdistill.support.pickles import PersistentObject, read_pickle, read_torch
from solverdistill.teachers import nvlabs
from solverdistill.teachers.checking.sample_files import read_samples
from solverdistill.teachers.checkpoints.cards import Card
from solverdistill.teachers.declared import check_declared
from solverdistill.teachers.edm import load_song_unet
from tests.pickle_making import RECONSTRUCT, as_persistent, dumps, persistent

HUGE = 1 << 33  # numbers: 64 GB in double precision
EPD = {"num_steps": 3, "sampler_stu": "epd", "afs": True, "dataset_name": "cifar10", "num_points": 2}
EPD |= {"scale_dir": 0.05, "scale_time": 0.05, "schedule_type": "time_uniform"}
TENSORS = ("r_params", "scale_dir_params", "scale_time_params", "weight_s")


@contextmanager
def quick(seconds: float = 2.0, megabytes: int = 256) -> Iterator[None]:
    """The block takes less than that of the processor and of memory."""
    peak, clock = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - clock < seconds
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) >> 10 < megabytes


def refused(load: Callable[[], object], message: str) -> None:
    with quick(), pytest.raises(ValueError, match=message) as caught:
        load()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def endless(*shape: int) -> torch.Tensor:
    """A tensor of one number, met again and again by strides of 0."""
    return torch.zeros(1).expand(*shape)


def predictor(folder: Path, tensors: dict[str, Any], **said: Any) -> Path:
    state = {"_parameters": tensors, "_init_kwargs": {**EPD, **said}}
    path = folder / "network-snapshot.pkl"
    path.write_bytes(dumps({"model": persistent("EPD_predictor", state)}, RECONSTRUCT))
    return path


def doubled(opcode: bytes = b"\x86", times: int = 60) -> bytes:
    """Opcodes that put () on the stack, then the pair of it twice, and so on: 2^times objects to whoever looks."""
    return b")" + b"".join(bytes([ord("2")]) + opcode for _ in range(times))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gas", lambda: [endless(HUGE - 1), *(endless(HUGE) for _ in range(3))]),
        ("ld3", lambda: {"params1": endless(HUGE), "params2": endless(HUGE), "best_t_steps": endless(2 * HUGE)}),
        (
            "flux",
            lambda: {
                "dyweight_weights_raw": endless(1 << 16, 1 << 16),
                "dyweight_t_scales": endless(1 << 16),
                "window_size": 3,
            },
        ),
    ],
)
def test_strides_of_zero_in_torch_files_are_never_filled_in(name: str, content: Any, tmp_path: Path) -> None:
    settings = Settings(model="flux" if name == "flux" else "cifar10", solver="ipndm")
    for old in (False, True):
        torch.save(content(), tmp_path / f"{name}.pt", _use_new_zipfile_serialization=not old)
        refused(lambda: import_solver(tmp_path / f"{name}.pt", settings), "bytes and would expand to")


def test_strides_of_zero_in_pickles_are_never_filled_in(tmp_path: Path) -> None:
    path = predictor(tmp_path, {name: endless(1 << 16, 1 << 17) for name in TENSORS})
    refused(lambda: import_solver(path), "bytes and would expand to")


@pytest.mark.filterwarnings("ignore:.*(quantize|Validating sparse|TypedStorage)")
def test_networks_are_held_against_the_size_of_their_file(tmp_path: Path) -> None:
    arguments = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "model_channels": 16, "num_blocks": 1}
    config = {"preconditioning": "edm", "network": "SongUNet", "arguments": arguments, "noise_range": [80.0, 0.002]}
    facts = Card(name="tiny", url="https://example.org/a", licence="MIT", source="a test", config=config)
    state = nvlabs.build(facts, arguments).state_dict()
    torch.save(state, tmp_path / "whole.pt")
    assert nvlabs.load_network(facts, tmp_path / "whole.pt").state_dict().keys() == state.keys()
    torch.save({**state, nvlabs.AUGMENT: endless(64, HUGE)}, tmp_path / "grown.pt")
    refused(lambda: nvlabs.load_network(facts, tmp_path / "grown.pt"), "would expand to|is not the SongUNet")
    key = "model.map_layer0.weight"
    odd = {
        "is sparse": state[key].to_sparse(),
        "holds torch.qint8": torch._empty_affine_quantized(state[key].shape, scale=1.0, dtype=torch.qint8),
        "has no data": state[key].to("meta"),
        "holds torch.complex64": state[key].to(torch.complex64),
    }
    for problem, value in odd.items():
        torch.save({**state, key: value}, tmp_path / "odd.pt")
        refused(lambda: nvlabs.load_network(facts, tmp_path / "odd.pt"), problem)


def test_archives_that_unpack_to_more_than_their_size_allows_are_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt", "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a/data/1", bytes(200 << 20))
    refused(lambda: import_solver(tmp_path / "a.pt"), "would expand to 200 MB or more; no file may expand to over 64")
    np.savez(tmp_path / "b.npz", r=np.ones((2, 2)))
    with zipfile.ZipFile(tmp_path / "b.npz", "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("weight.npy", bytes(200 << 20))
    for load in (import_solver, lambda path: open_images(path, 1)):
        refused(lambda load=load: load(tmp_path / "b.npz"), "would expand to")


def test_array_headers_are_believed_as_far_as_the_data_reach(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", r=np.ones((2, 2)))
    np.save(tmp_path / "b.npy", np.ones((2, 2)))
    data = (tmp_path / "b.npy").read_bytes()
    for shape in ("(9999999999, 2)", "(-1, 4)", "(99999999999999999999, 9)"):
        header = data.replace(b"(2, 2), }" + b" " * (len(shape) - 6), f"{shape}, }}".encode())
        assert header != data
        with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
            archive.writestr("r.npy", header)
        refused(lambda: import_solver(tmp_path / "c.npz"), "array r.npy of .* cannot be read: its header asks for")
        (tmp_path / "d.npy").write_bytes(header)
        refused(lambda: read_samples(str(tmp_path / "d.npy"), (2,), 4), "its header asks for")


def test_damaged_archives_are_one_sentence(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    central = data.rindex(b"PK\x01\x02")
    (tmp_path / "a.pt").write_bytes(data[:central] + b"XX" + data[central + 2 :])
    refused(lambda: import_solver(tmp_path / "a.pt"), "is a damaged archive, get it again")
    locator = struct.pack("<LLQL", 0x07064B50, 0, 0, 2)  # of an archive on two disks
    end = data.rindex(b"PK\x05\x06")
    (tmp_path / "a.pt").write_bytes(data[:end] + locator + data[end:])
    for load in (import_solver, read_torch):
        refused(lambda load=load: load(tmp_path / "a.pt"), "zipfiles that span multiple disks")


KEYS = {
    "key": b"}" + doubled() + b"K\x01s.",
    "keys": b"}(" + doubled() + b"K\x01u.",
    "dict": b"(" + doubled() + b"K\x01d.",
    "member": b"\x8f(" + doubled() + b"\x90.",
    "frozen": b"(" + doubled() + b"\x91.",
    "frozen members": b"(" + doubled() + b"\x91" * 1 + b".",
    "set": b"cbuiltins\nset\n](" + doubled() + b"e\x85R.",
    "ordered": b"ccollections\nOrderedDict\n](" + doubled() + b"K\x01\x86e\x85R.",
    "device": b"ctorch\ndevice\n" + doubled() + b"\x85R.",
    "codec": b"c_codecs\nencode\n" + doubled() + b"\x85R.",
    "size": b"cnumpy.core.multiarray\nscalar\n" + doubled() + b"\x85R.",
    "new": b"ctorch.nn.modules.module\nModule\n" + doubled() + b"\x85\x81.",
}


@pytest.mark.parametrize("name", KEYS)
def test_objects_that_double_are_counted_before_they_are_visited(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04" + KEYS[name])
    assert path.stat().st_size < 300
    refused(lambda: read_pickle(path), "repeats or nests its objects so that over 500000 are met")


@pytest.mark.parametrize("old", [False, True])
def test_objects_of_torch_files_are_counted_too(old: bool, tmp_path: Path) -> None:
    torch.save({"a": "mark"}, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    evil = b"\x80\x02}" + doubled() + b"K\x01s."
    if old:
        data = (tmp_path / "a.pt").read_bytes()
        start = data.index(b"\x80\x02}q\x00X\x01\x00\x00\x00a")
        (tmp_path / "a.pt").write_bytes(data[:start] + evil + data[data.index(b".", start) + 1 :])
    else:
        with zipfile.ZipFile(tmp_path / "a.pt") as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, evil if name.endswith("data.pkl") else content)
    refused(lambda: read_torch(tmp_path / "a.pt"), "repeats or nests its objects")


def test_shared_objects_are_never_printed_whole(tmp_path: Path) -> None:
    box: Any = []
    for _ in range(60):
        box = [box, box]
    path = tmp_path / "network-snapshot.pkl"
    for name in ("num_steps", "sampler_stu", "afs", "schedule_rho", "guidance_type"):
        state = {"_parameters": {}, "_init_kwargs": {**EPD, name: box}}
        path.write_bytes(dumps({"model": persistent("EPD_predictor", state)}, RECONSTRUCT))
        refused(lambda: import_solver(path), f"{name}|repeats or nests")
    with quick():
        assert len(shown({"a": box, "b": PersistentObject("Net", {"c": box})})) <= 200


def test_calls_that_copy_the_same_bytes_are_added_up(tmp_path: Path) -> None:
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
    calls = b"h\x00h\x01\x85R0" * 50_000
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04c_codecs\nencode\nq\x00" + text + b"q\x01" + calls + b"N.")
    refused(lambda: read_pickle(path), "would expand to")
    path.write_bytes(b"\x80\x04" + b"\x8f0" * (MAX_OBJECTS // 2 + 1) + b"N.")
    with quick(seconds=6):
        with pytest.raises(ValueError, match="a pickle of over 500000 instructions"):
            read_pickle(path)


def test_states_go_into_records_alone(tmp_path: Path) -> None:
    tensor = pickle.dumps(torch.zeros(2), protocol=4)[:-1]
    four = b"(K\x01K\x02K\x03K\x04tb."
    for data in (tensor + four, b"\x80\x04N" + four, b"\x80\x04K\x01K\x02a.", b"\x80\x04]K\x00K\x01s."):
        (tmp_path / "a.pkl").write_bytes(data)
        refused(lambda: read_pickle(tmp_path / "a.pkl"), "a state for|an item for|names an item|names a state")


@pytest.mark.parametrize("kind", ["_init_kwargs", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"])
def test_tensors_in_the_place_of_anything_are_one_sentence(kind: str, tmp_path: Path) -> None:
    parameters = {name: torch.zeros(2, 2) for name in TENSORS}
    state = {"_parameters": parameters, "_init_kwargs": EPD, kind: torch.ones(3)}
    path = tmp_path / "network-snapshot.pkl"
    path.write_bytes(dumps({"model": persistent("EPD_predictor", state)}, RECONSTRUCT))
    if kind == "_non_persistent_buffers_set":
        assert import_solver(path).family is not None
    else:
        refused(lambda: import_solver(path), f"pickled network has {kind} that are no dict")


def test_a_released_network_may_say_anything_about_itself(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "model_channels": 16}
    arguments["channel_mult"] = [1, 2]
    config = {"preconditioning": "edm", "network": "SongUNet", "arguments": arguments}
    facts = Card(name="tiny", url="https://example.org/a", licence="MIT", source="a test", config=config)
    net = nvlabs.build(facts, arguments)
    path = tmp_path / "a.pkl"
    for name, value in (("model_channels", torch.ones(2)), ("channel_mult", [[1, 2], 2]), ("img_resolution", "8")):
        inner = {**arguments, "class_name": "SongUNet", name: value}
        path.write_bytes(dumps({"ema": as_persistent(net, "EDMPrecond", {}, inner)}, RECONSTRUCT))
        refused(lambda: nvlabs.load_network(facts, path), f"was made with {name}=")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1" + "0" * 400, "an integer of 401 digits, which is too large"),
        ("-" + "9" * 5000, "an integer of 5000 digits"),
        ("1e400", "1e400, which is too large for a number"),
        ("[" * 90 + "]" * 90, "nests deeper than 64 levels"),
        ("[" * 100_000 + "]" * 100_000, "nests deeper than 64 levels"),
        ('{"a": ' * 70 + "1" + "}" * 70, "nests deeper than 64 levels"),
    ],
)
def test_json_that_could_not_be_written_again_is_not_read(value: str, message: str, tmp_path: Path) -> None:
    path = save_solver(tmp_path / "s.json", build("heun", [80.0, 2.0, 0.002]).program(), provenance={"mark": "@"})
    text = path.read_text()
    path.write_text(text.replace('"@"', value))
    refused(lambda: read_solver(path), f"s.json is refused: it (holds )?{message}")
    path.write_text(text.replace('"nfe": ', f'"nfe": {value}, "x": ', 1))
    refused(lambda: read_solver(path), message)
    (tmp_path / "table.json").write_text(f'{{"class_name": "EPD_predictor", "init_kwargs": {{"num_steps": {value}}}}}')
    refused(lambda: import_solver(tmp_path / "table.json"), message)


def test_json_of_ordinary_depth_and_size_is_read() -> None:
    text = '{"seed": 18446744073709551615, "x": [[[1.5e300, -7]]], "y": "[[[["}'
    assert parse_json(text) == json.loads(text)


def test_configurations_are_held_against_their_weights(tmp_path: Path) -> None:
    arguments = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "model_channels": 8, "num_blocks": 1}
    path = tmp_path / "net.safetensors"
    state = Preconditioned(SongUNet(**arguments), "edm").state_dict()

    def write(**changes: Any) -> None:
        config = {"network": {**arguments, **changes}, "preconditioning": {"kind": "edm"}}
        save_file(state, path, {"config": json.dumps(config)})

    write()
    assert load_song_unet(path).state_dict().keys() == state.keys()
    for changes, message in (
        ({"model_channels": 1 << 16}, "would expand to"),
        ({"num_blocks": 100_000}, "a network of over|would expand to"),
        ({"model_channels": 10**12}, "says model_channels is 1000000000000, more than any network has"),
        ({"model_channels": "many"}, "cannot be"),
    ):
        write(**changes)
        refused(lambda: load_song_unet(path), message)


def test_the_count_of_a_building_ends_with_it(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(Oversized, match="hold 1 tensors and a network of over 1016 modules is declared"):
        check_declared(tmp_path, {}, lambda: torch.nn.Sequential(*(torch.nn.ReLU() for _ in range(2000))))
    assert len(torch.nn.Sequential(*(torch.nn.ReLU() for _ in range(2000)))) == 2000


def test_an_allowance_is_that_of_all_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors", "c.bin"):
        (tmp_path / name).write_bytes(bytes(1000))
    allowance = Allowance.of(tmp_path)
    assert allowance.most == 64 * 2000 + (64 << 20)
    allowance.take(allowance.most)
    with pytest.raises(Oversized, match="has 2000 bytes and would expand to 64 MB or more"):
        allowance.take(1)
