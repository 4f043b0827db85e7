"""Loading of the EDM checkpoints: from pickles, state dicts and safetensors; what is refused; facts of the networks."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from solverdistill.denoisers.base import Teacher
from solverdistill.networks.dhariwal_unet import DhariwalUNet
from solverdistill.networks.preconditioning import Preconditioned
from solverdistill.networks.song_unet import SongUNet
from solverdistill.teachers import nvlabs
from solverdistill.teachers.checkpoints.cards import Card, card, cards
from solverdistill.teachers.nvlabs import PRECONDITIONINGS, build, edm_checkpoint
from tests.pickle_making import as_persistent, persistent, write_checkpoint
from tests.test_networks import fill

NAMES = sorted(name for name, entry in cards().items() if entry.config.get("network") in nvlabs.NETWORKS)
SONG = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "label_dim": 10, "model_channels": 16}
SONG |= {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
ADM = {**SONG, "model_channels": 64, "out_channels": 2}
NCSNPP = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}
NETWORKS = {
    "edm": ("SongUNet", SONG),
    "vp": ("SongUNet", SONG),
    "ve": ("SongUNet", {**SONG, **NCSNPP, "resample_filter": [1, 3, 3, 1]}),
    "iddpm": ("DhariwalUNet", ADM),
}


def small_card(kind: str, monkeypatch: pytest.MonkeyPatch, **facts: Any) -> Card:
    """Card "tiny" of a small network."""
    network, arguments = NETWORKS[kind]
    config: dict[str, Any] = {"preconditioning": kind, "network": network, "arguments": {**arguments, **facts}}
    if kind == "edm":
        config["noise_range"] = [80.0, 0.002]
    if kind == "iddpm":
        config["noise_range"] = [80.0, 0.0065]
    made = Card(name="tiny", url="https://example.org/tiny.pkl", licence="MIT", source="a test", config=config)
    monkeypatch.setattr(nvlabs, "card", lambda name: made)
    return made


def original(kind: str) -> Preconditioned:
    """A network as it was trained: with augmentation labels, which are of no use afterwards."""
    network, arguments = NETWORKS[kind]
    cls = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}[network]
    net = Preconditioned(cls(**arguments, augment_dim=9), kind).eval()
    fill(net)
    return net


def pickled(path: Path, kind: str, net: Preconditioned, **said: Any) -> Path:
    """Write the network as the released code pickles it, with some of what it says about itself changed."""
    network, arguments = NETWORKS[kind]
    inner = {**arguments, "augment_dim": 9, "dropout": 0.13, "class_name": network, **said}
    return write_checkpoint(path, as_persistent(net, PRECONDITIONINGS[kind], {"img_resolution": 8}, inner))


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_every_kind_of_file_gives_the_same_teacher(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_card(kind, monkeypatch)
    net = original(kind)
    paths = [pickled(tmp_path / "a.pkl", kind, net), tmp_path / "b.pt", tmp_path / "c.pt", tmp_path / "d.safetensors"]
    torch.save(net.state_dict(), paths[1])
    torch.save({"ema": net.state_dict()}, paths[2], _use_new_zipfile_serialization=False)
    save_file(net.state_dict(), paths[3])
    x = torch.randn(3, 1, 8, 8)
    alpha, sigma, label = torch.tensor([1.0, 0.5, 0.01]), torch.tensor([0.1, 0.9, 1.0]), torch.tensor([3, -1, 9])
    onehot = torch.eye(10)[[3, 0, 9]] * torch.tensor([1.0, 0.0, 1.0])[:, None]
    expected = net(x / alpha[:, None, None, None], sigma / alpha, onehot)
    for path in paths:
        teacher = edm_checkpoint("tiny", path)
        assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
        torch.testing.assert_close(teacher(x, alpha, sigma, label), expected, rtol=0, atol=0)
    assert len({edm_checkpoint("tiny", path).fingerprint() for path in paths}) == 1


def test_half_precision_files_become_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_card("edm", monkeypatch)
    torch.save({key: value.half() for key, value in original("edm").state_dict().items()}, tmp_path / "half.pt")
    teacher = edm_checkpoint("tiny", tmp_path / "half.pt")
    assert {value.dtype for value in teacher.state_dict().values()} == {torch.float32}


def test_noise_ranges_are_those_of_the_preconditionings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"edm": (80.0, 0.002), "vp": (152.166970, 0.00100049763), "ve": (100.0, 0.02), "iddpm": (80.0, 0.0065)}
    for kind, limits in expected.items():
        small_card(kind, monkeypatch)
        torch.save(original(kind).state_dict(), tmp_path / "net.pt")
        assert edm_checkpoint("tiny", tmp_path / "net.pt").noise_range == pytest.approx(limits, rel=1e-5)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"channel_mult": [1, 2, 2]}, r"was made with channel_mult=\[1, 2, 2\] and not \[1, 2\] as the card of tiny"),
        ({"label_dim": 0}, "was made with label_dim=0 and not 10 as the card of tiny states"),
        ({"encoder_type": "residual"}, "was made with encoder_type=residual and not standard"),
        ({"class_name": "DhariwalUNet"}, "holds DhariwalUNet and not SongUNet as the card of tiny states"),
    ],
)
def test_a_pickle_that_disagrees_with_its_card_is_refused(
    said: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_card("edm", monkeypatch)
    path = pickled(tmp_path / "net.pkl", "edm", original("edm"), **said)
    with pytest.raises(ValueError, match=sentence):
        edm_checkpoint("tiny", path)


def test_what_a_pickle_leaves_to_the_released_defaults_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_card("edm", monkeypatch)
    said = {key: value for key, value in SONG.items() if key != "channel_mult"}
    content = persistent("SongUNet", {"_init_kwargs": said})
    path = write_checkpoint(tmp_path / "net.pkl", persistent("EDMPrecond", {"_modules": {"model": content}}))
    with pytest.raises(ValueError, match=r"channel_mult=\[1, 2, 2, 2\] and not \[1, 2\]"):
        edm_checkpoint("tiny", path)


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (persistent("VPPrecond", {}), "holds VPPrecond and not EDMPrecond as the card of tiny states"),
        (persistent("EDMPrecond", {"_modules": {}}), "holds no network and not SongUNet"),
        (None, "holds no network under the key 'ema'"),
        (
            persistent("EDMPrecond", {"_modules": {"model": persistent("SongUNet", {})}, "sigma_data": 0.7}),
            "was made with sigma_data=0.7 and not 0.5, which is the only value known here",
        ),
    ],
)
def test_other_pickles_are_refused(
    network: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_card("edm", monkeypatch)
    with pytest.raises(ValueError, match=sentence):
        edm_checkpoint("tiny", write_checkpoint(tmp_path / "net.pkl", network))


def test_wrong_tensors_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_card("edm", monkeypatch)
    good = {key: value for key, value in original("edm").state_dict().items() if key != nvlabs.AUGMENT}
    path, key = tmp_path / "net.pt", "model.enc.8x8_block0.conv0.weight"
    cases = [
        ({k: v for k, v in good.items() if k != key}, f"lacks tensor {key}"),
        ({k: v for k, v in good.items() if "enc." not in k}, r"lacks tensor model\.enc\.4x4_block0.* and \d+ more"),
        ({**good, "model.extra": torch.ones(1)}, "has the unknown tensor model.extra"),
        ({**good, key: torch.ones(16, 16, 1, 1)}, rf"{key} has shape \(16, 16, 1, 1\) and not \(16, 16, 3, 3\)"),
        ({**good, key: good[key].long()}, f"{key} holds torch.int64 numbers"),
        ({**good, "step": 3}, "is no state dict"),
        ([1], "is no state dict"),
    ]
    for content, sentence in cases:
        torch.save(content, path)
        with pytest.raises(ValueError, match=sentence) as caught:
            edm_checkpoint("tiny", path)
        assert "\n" not in str(caught.value)
    save_file({key: torch.ones(2)}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="is not the SongUNet of tiny: it lacks tensor"):
        edm_checkpoint("tiny", tmp_path / "net.safetensors")


def test_damaged_and_missing_files_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_card("edm", monkeypatch)
    net = original("edm")
    torch.save(net.state_dict(), tmp_path / "net.pt")
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    pickled(tmp_path / "net.pkl", "edm", net)
    for path in sorted(tmp_path.glob("net.*")):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(ValueError, match="get it again") as caught:
            edm_checkpoint("tiny", path)
        assert "\n" not in str(caught.value)
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"ema": nvlabs.build}, protocol=4))
    with pytest.raises(ValueError, match=r"names solverdistill\.teachers\.nvlabs\.build, which is not on the list"):
        edm_checkpoint("tiny", tmp_path / "net.pkl")
    with pytest.raises(FileNotFoundError, match="weights file .*absent.pkl of tiny does not exist"):
        edm_checkpoint("tiny", tmp_path / "absent.pkl")


def test_the_released_file_is_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_card("edm", monkeypatch)
    monkeypatch.setenv("SOLVERDISTILL_HOME", str(tmp_path))
    monkeypatch.setenv("SOLVERDISTILL_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"needs tiny\.pkl .* get it from https://example.org/tiny.pkl and put"):
        edm_checkpoint("tiny")
    (tmp_path / "checkpoints").mkdir()
    pickled(tmp_path / "checkpoints" / "tiny.pkl", "edm", original("edm"))
    assert edm_checkpoint("tiny").name == "tiny"


def test_random_weights_are_labelled_and_seeded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small_card("ve", monkeypatch)
    before = torch.get_rng_state()
    first, again, other = (edm_checkpoint("tiny", "random", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.name == "tiny-random" and first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert "RANDOM WEIGHTS" in caplog.text
    x = torch.randn(2, 1, 8, 8)
    raw = first(x, torch.ones(2), torch.tensor([0.1, 1.0])) - x
    assert bool((raw.flatten(1).std(dim=1) > 0.01 * torch.tensor([0.1, 1.0])).all())


def test_ways_of_running_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    small_card("iddpm", monkeypatch)
    x, alpha, sigma = torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0.3, 2.0])
    plain, fast = (edm_checkpoint("tiny", "random", running) for running in (None, {"channels_last": True}))
    torch.testing.assert_close(fast(x, alpha, sigma), plain(x, alpha, sigma), rtol=1e-5, atol=1e-5)
    half = edm_checkpoint("tiny", "random", {"dtype": "bfloat16"})(x, alpha, sigma)
    assert half.dtype == torch.float32 and half.equal(half.bfloat16().float()) is False
    torch.testing.assert_close(half, plain(x, alpha, sigma), rtol=0.05, atol=0.1)
    with pytest.raises(ValueError, match="running.attention=math has no effect on the EDM networks"):
        edm_checkpoint("tiny", "random", {"attention": "math"})


def test_gradients_reach_x_and_the_noise_level(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in NETWORKS:
        small_card(kind, monkeypatch)
        teacher: Teacher = edm_checkpoint("tiny", "random").double()
        values = [torch.randn(2, 1, 8, 8), torch.tensor([0.9, 0.2]), torch.tensor([0.4, 1.0])]
        values = [value.double().requires_grad_() for value in values]
        output = teacher(*values)
        assert output.dtype == torch.float64
        for gradient in torch.autograd.grad(output.square().sum(), values):
            assert gradient.isfinite().all() and (gradient != 0).all()
        scaled = teacher(*(value * 3.0 for value in values))
        torch.testing.assert_close(scaled, output, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_size_of_every_released_network(name: str) -> None:
    entry = card(name)
    with torch.device("meta"):
        net = build(entry, entry.config["arguments"])
    assert sum(value.numel() for value in net.parameters()) == entry.parameters
    published = {"edm_cifar": (55_733_891, 425), "edm_cifar_cond": (55_735_299, 427), "edm_cifar_ve": (56_397_827, 432)}
    published |= {"edm_ffhq": (61_805_571, 553), "edm_imagenet64": (295_899_267, 553)}
    if name in published:
        assert (entry.parameters, len(net.state_dict())) == published[name]
    assert ("u" in net.state_dict()) == (entry.config["preconditioning"] == "iddpm")
    assert ("model.map_noise.freqs" in net.state_dict()) == name.endswith("_ve")
    assert ("model.map_label.weight" in net.state_dict()) == ("label_dim" in entry.config["arguments"])
    assert (nvlabs.AUGMENT in net.state_dict()) == (name.startswith("edm_") and name != "edm_imagenet64")


def test_cards_of_other_networks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Card(name="other", url="https://example.org/net.pt", licence="MIT", source="a test")
    monkeypatch.setattr(nvlabs, "card", lambda name: entry)
    with pytest.raises(ValueError, match="checkpoint other is no EDM network"):
        edm_checkpoint("other")
