"""The restricted reader of pickles: what it reads, what it refuses, and that it runs and imports nothing."""

from __future__ import annotations

import builtins
import copyreg
import io
import os
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from solverdistill.support.pickles import (
    PersistentObject,
    Record,
    Reference,
    file_kind,
    read_pickle,
    read_pickle_stream,
    read_torch,
    state_dict_of,
)
from tests.pickle_making import RECONSTRUCT, Call, as_persistent, dumps, mentioned, persistent


def read(data: bytes) -> Any:
    return read_pickle_stream(io.BytesIO(data))


def small_network() -> nn.Module:
    network = nn.Module()
    network.model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Identity())
    network.register_buffer("u", torch.arange(3.0))
    network.register_buffer("scratch", torch.zeros(2), persistent=False)
    network.register_parameter("missing", None)
    return network


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dict_of_persistent_objects_is_that_of_the_network(protocol: int) -> None:
    network = small_network()
    record = as_persistent(network, "EDMPrecond", {"img_channels": 1}, {"class_name": "SongUNet", "dropout": 0.1})
    read_back = read(dumps({"ema": record}, RECONSTRUCT, protocol=protocol))["ema"]
    assert isinstance(read_back, PersistentObject) and read_back.class_name == "EDMPrecond"
    assert read_back.init_kwargs == {"img_channels": 1}
    assert read_back.part("modules")["model"].init_kwargs == {"dropout": 0.1}
    found, expected = state_dict_of(read_back), network.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
        assert found[name].dtype == value.dtype and not found[name].requires_grad


def test_modules_of_torch_become_inert_records() -> None:
    network = small_network()
    read_back = read(pickle.dumps(network, protocol=4))
    assert isinstance(read_back, Record) and read_back.class_name == "torch.nn.modules.module.Module"
    assert not isinstance(read_back, nn.Module)
    assert list(state_dict_of(read_back)) == list(network.state_dict())


def test_tensors_of_every_layout_are_equal() -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "whole": base,
        "transposed": base.mT,
        "view": base[1:, :, ::2],
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "half": base.to(torch.bfloat16),
        "whole_numbers": torch.arange(5),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    for name, value in read(pickle.dumps(tensors, protocol=4)).items():
        assert type(value) is Tensor
        torch.testing.assert_close(value, tensors[name].detach(), rtol=0, atol=0)


def test_numbers_and_containers_are_read() -> None:
    values = {
        "set": {1, 2},
        "frozen": frozenset("ab"),
        "ordered": OrderedDict(a=1),
        "float32": np.float32(0.1),
        "int64": np.int64(-7),
        "array": np.arange(6, dtype=">f4").reshape(2, 3),
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cuda:1"),
        "bytes": b"\xff",
    }
    for protocol in (2, 4):
        found = read(pickle.dumps(values, protocol=protocol))
        np.testing.assert_array_equal(found.pop("array"), values["array"])
        assert found == {**{k: v for k, v in values.items() if k != "array"}, "size": (2, 3), "device": "cuda:1"}
        assert type(found["float32"]) is float and type(found["int64"]) is int


def test_functions_of_the_samplers_projects_are_names_only() -> None:
    names = ("solvers.epd_sampler", "solver_utils.amed.get")
    found = read(dumps(lambda: {"f": mentioned(names[0]), "g": mentioned(names[1])}, *names))
    assert found == {"f": Reference("solvers.epd_sampler"), "g": Reference("solver_utils.amed.get")}
    with pytest.raises(ValueError, match="not callable"):
        read(dumps(Call("solvers.epd_sampler", 1), "solvers.epd_sampler"))


class Touch:
    """Pickled as a call that creates a file."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), f"{os.system.__module__}.system"),
        (builtins.eval, ("open({!r}, 'w')",), "builtins.eval"),
        (builtins.exec, ("open({!r}, 'w')",), "builtins.exec"),
        (builtins.open, ("{}", "w"), f"{builtins.open.__module__}.open"),  # io, or _io since Python 3.13
        (builtins.getattr, (torch.float32, "__class__"), "builtins.getattr"),
        (builtins.__import__, ("os",), "builtins.__import__"),
        (np.save, ("{}", 1), "numpy.save"),
        (torch.save, (1, "{}"), "torch.serialization.save"),
        (torch.hub.load, ("{}", "model"), "torch.hub.load"),
    ],
)
def test_calls_of_other_functions_are_refused(function: Any, arguments: Any, name: str, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    given = tuple(value.format(str(target)) if isinstance(value, str) else value for value in arguments)
    data = pickle.dumps({"ema": [Touch(function, *given)]}, protocol=4)
    with pytest.raises(ValueError) as caught:
        read(data)
    assert str(caught.value) == f"the pickle names {name}, which is not on the list of what may be read"
    assert not target.exists()


@pytest.mark.parametrize(
    "name",
    [
        "torch_utils.persistence.import_hook",
        "torch_utils.other._reconstruct_persistent_obj",
        "training.networks.EDMPrecond",
        "evil.torch.nn.modules.Linear",
        "solversx.run",
        "torch.nn.functional.relu",
        "torch.jit.load",
    ],
)
def test_foreign_names_are_refused(name: str) -> None:
    # The opcode alone: whether the module exists must not matter.
    module, _, attribute = name.rpartition(".")
    data = b"\x80\x02c" + module.encode() + b"\n" + attribute.encode() + b"\n)R."
    with pytest.raises(ValueError, match=f"names {name}, which is not on the list"):
        read(data)


def test_dotted_names_do_not_reach_into_what_is_allowed() -> None:
    for module, name in (("collections", "OrderedDict.__init__"), ("torch.device", "__class__"), ("builtins", "set.x")):
        data = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)])
        with pytest.raises(ValueError, match="not on the list"):
            read(data + name.encode() + b"\x93.")


@pytest.mark.parametrize(
    "network", [persistent("Net", {}, "function"), persistent(3, {}), persistent("Net", None), Call(RECONSTRUCT, [])]
)
def test_persistent_objects_of_another_form_are_refused(network: Call) -> None:
    with pytest.raises(ValueError, match="persistent object of unknown form"):
        read(dumps(network, RECONSTRUCT))


def test_state_cannot_be_set_on_what_is_allowed() -> None:
    state = pickle.dumps((None, {"run": 1, "__setstate__": 2, "__code__": 3}), protocol=2)[2:-1]
    for name in ("torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict", "torch\nfloat32", "builtins\nset"):
        with pytest.raises(ValueError, match="the pickle"):
            read(b"\x80\x02c" + name.encode() + b"\n" + state + b"b.")
    with pytest.raises(ValueError, match="the pickle"):
        read(b"\x80\x02ctorch.nn.modules.linear\nLinear\n" + state + b"b.")
    assert pickle.loads(pickle.dumps(torch.float32)) is torch.float32


def test_attributes_set_on_dicts_are_dropped() -> None:
    value = OrderedDict(a=1)
    vars(value)["keys"] = 3
    found = read(pickle.dumps(value, protocol=4))
    assert found == {"a": 1} and list(found.keys()) == ["a"]


def test_arrays_and_tensors_beyond_their_data_are_refused() -> None:
    storage = torch.arange(4.0).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    for arguments in ((0, (5,), (1,)), (3, (2,), (1,)), (0, (2, 2), (3, 1)), (-1, (1,), (1,)), (0, (1,), (1, 1))):
        call = Touch(torch._utils._rebuild_tensor_v2, typed, *arguments, False, OrderedDict())
        with pytest.raises(ValueError, match="beyond its storage|impossible shape"):
            read(pickle.dumps(call, protocol=4))
    array = pickle.dumps(np.arange(4, dtype=np.float64), protocol=4)
    grown = array.replace(b"K\x04\x85", b"K\x05\x85")
    assert grown != array
    with pytest.raises(ValueError, match="do not fill its shape"):
        read(grown)
    with pytest.raises(ValueError, match=r"numpy\.dtype\('O8'\)"):
        read(pickle.dumps(np.array([1, "text"], dtype=object), protocol=4))


def test_storage_bytes_are_read_as_weights_only(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(Touch(os.mkdir, str(tmp_path / "made")), stream, _use_new_zipfile_serialization=False)
    data = pickle.dumps(Touch(torch.storage._load_from_bytes, stream.getvalue()), protocol=4)
    with pytest.raises(ValueError, match="cannot be read"):
        read(data)
    assert not (tmp_path / "made").exists()


def test_nothing_is_imported() -> None:
    network = as_persistent(small_network(), "EDMPrecond", {}, {})
    data = dumps(lambda: {"ema": network, "f": mentioned("solvers.run")}, RECONSTRUCT, "solvers.run")
    unused = b"\x80\x02cturtle\nbye\n."
    before = set(sys.modules)
    read(data)
    with pytest.raises(ValueError, match="turtle.bye"):
        read(unused)
    assert set(sys.modules) == before and "torch_utils" not in before


def test_instructions_that_go_around_the_list_are_refused() -> None:
    with pytest.raises(ValueError, match="a persistent id"):
        read(b"\x80\x02K\x01Q.")
    copyreg.add_extension("builtins", "eval", 240)
    try:
        assert pickle.loads(b"\x80\x02\x82\xf0.") is eval  # from now on known without a look-up
        with pytest.raises(ValueError, match="a registered extension"):
            read(b"\x80\x02\x82\xf0.")
    finally:
        copyreg.remove_extension("builtins", "eval", 240)
    with pytest.raises(ValueError, match="a memory cell out of order"):
        read(b"\x80\x02K\x01r\xff\xff\xff\xff.")


def test_networks_that_contain_themselves_end() -> None:
    loop: dict[str, Any] = {"_parameters": {}, "_buffers": {}}
    record = PersistentObject("Net", loop)
    loop["_modules"] = {"again": record}
    with pytest.raises(ValueError, match="deeper than 64 levels"):
        state_dict_of(record)
    wide = PersistentObject("Leaf", {"_parameters": {}, "_buffers": {}, "_modules": {}})
    for _ in range(40):
        wide = PersistentObject("Net", {"_parameters": {}, "_buffers": {}, "_modules": {"a": wide, "b": wide}})
    with pytest.raises(ValueError, match="100000 modules"):
        state_dict_of(wide)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (PersistentObject("Net", {"_parameters": {"w": "text"}}), "holds w, which is no tensor"),
        (PersistentObject("Net", {"_modules": {"a": 3}}), "holds a, which is no module"),
        (PersistentObject("Net", {"_modules": [3]}), "_modules that are no dict"),
        ({"weight": 1}, "holds an object, which is no module"),
    ],
)
def test_what_is_no_network_is_said(record: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        state_dict_of(record)


def test_files_are_told_apart_by_content(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    value = {"a": torch.ones(2)}
    torch.save(value, tmp_path / "zip")
    torch.save(value, tmp_path / "old", _use_new_zipfile_serialization=False)
    save_file(value, tmp_path / "safe")
    (tmp_path / "raw").write_bytes(pickle.dumps(value, protocol=4))
    (tmp_path / "text").write_text("hello")
    kinds = {name: file_kind(tmp_path / name) for name in ("zip", "old", "safe", "raw")}
    assert kinds == {"zip": "torch", "old": "torch-legacy", "safe": "safetensors", "raw": "pickle"}
    for reader, name in ((read_torch, "zip"), (read_torch, "old"), (read_pickle, "raw")):
        torch.testing.assert_close(reader(tmp_path / name)["a"], torch.ones(2))
    with pytest.raises(ValueError, match="neither a pickle, a torch file nor a safetensors file"):
        file_kind(tmp_path / "text")
    with pytest.raises(ValueError, match="is a torch file and not a raw pickle"):
        read_pickle(tmp_path / "zip")
    with pytest.raises(ValueError, match="is a pickle file and not one of torch.save"):
        read_torch(tmp_path / "raw")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_pickle(tmp_path / "absent")


def test_truncated_files_are_one_sentence(tmp_path: Path) -> None:
    value = {"a": torch.arange(1000.0)}
    torch.save(value, tmp_path / "zip")
    (tmp_path / "raw").write_bytes(pickle.dumps(value, protocol=4))
    for name, reader in (("zip", read_torch), ("raw", read_pickle)):
        path = tmp_path / name
        for part in (0.3, 0.7, 0.98):
            cut = tmp_path / "cut"
            cut.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
            with pytest.raises(ValueError, match="is truncated") as caught:
                reader(cut)
            assert "\n" not in str(caught.value)


def test_damaged_pickles_are_one_sentence() -> None:
    good = bytearray(dumps(as_persistent(small_network(), "Net", {}, {}), RECONSTRUCT))
    generator = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(good)
        for position in generator.integers(2, len(data), 3):
            data[position] = generator.integers(256)
        try:
            read(bytes(data))
        except ValueError as error:
            assert str(error).startswith("the pickle ") and "\n" not in str(error)
    with pytest.raises(ValueError, match="the pickle"):
        read(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.")


def test_torch_files_with_code_are_refused(tmp_path: Path) -> None:
    torch.save({"a": Touch(os.mkdir, str(tmp_path / "made"))}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="cannot be read as plain tensors") as caught:
        read_torch(tmp_path / "file.pt")
    assert "\n" not in str(caught.value) and not (tmp_path / "made").exists()
