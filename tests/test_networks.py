"""SongUNet against the published architecture, and the preconditionings against their formulas."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from solverdistill.networks import DigitClassifier, Preconditioned, SongUNet
from solverdistill.networks.preconditioning import iddpm_noise_levels

GOLDENS = Path(__file__).parent / "goldens" / "networks"
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1),
}
SMALL = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "model_channels": 16, "channel_mult": (1, 2)}
KINDS = ("edm", "vp", "ve", "iddpm")


def small_denoiser(kind: str = "edm", **options: Any) -> Preconditioned:
    """Tiny denoiser with weights of the golden formula, so that no path is switched off by a zero initialisation."""
    settings = {**SMALL, "num_blocks": 1, "attn_resolutions": (4,), **options}
    denoiser = Preconditioned(SongUNet(**settings), kind).eval()
    fill(denoiser)
    return denoiser


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Set every weight by the formula of tests/goldens/networks/README.md."""
    for name, tensor in module.state_dict().items():
        parts = name.split(".")
        if parts[-1] in ("resample_filter", "u"):
            continue
        values = 0.1 * np.random.RandomState(zlib.crc32(name.encode())).randn(*tensor.shape)
        tensor.copy_(torch.from_numpy(values + ("norm" in parts[-2] and parts[-1] == "weight")))


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Network arguments and arrays of a golden file."""
    with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as data:
        config = json.loads(str(data["config"]))
        return config, {key: torch.from_numpy(data[key]) for key in data.files if key != "config"}


@pytest.mark.parametrize(
    ("options", "parameters", "tensors"),
    [
        pytest.param({}, 55_733_891, 425, id="cifar10-uncond-vp"),
        pytest.param({"label_dim": 10}, 55_735_299, 427, id="cifar10-cond-vp"),
        pytest.param(NCSNPP, 56_397_827, 432, id="cifar10-uncond-ve"),
        pytest.param({"img_resolution": 64, "channel_mult": (1, 2, 2, 2)}, 61_805_571, 553, id="ffhq-uncond-vp"),
    ],
)
def test_sizes_of_the_published_networks(options: dict[str, Any], parameters: int, tensors: int) -> None:
    settings = {"img_resolution": 32, "in_channels": 3, "out_channels": 3, "augment_dim": 9, **options}
    with torch.device("meta"):
        denoiser = Preconditioned(SongUNet(**settings))
    assert sum(p.numel() for p in denoiser.parameters()) == parameters
    assert len(denoiser.state_dict()) == tensors
    assert all(name.startswith("model.") for name in denoiser.state_dict())


def test_tensor_names_of_the_published_networks() -> None:
    with torch.device("meta"):
        vp = SongUNet(32, 3, 3, label_dim=10, augment_dim=9).state_dict()
        ve = SongUNet(32, 3, 3, **NCSNPP).state_dict()
    assert {"map_layer0.weight", "map_label.bias", "map_augment.weight", "enc.32x32_conv.weight"} < set(vp)
    assert {"enc.32x32_block0.norm0.weight", "enc.16x16_block3.qkv.weight", "dec.8x8_in0.proj.bias"} < set(vp)
    assert {"enc.16x16_down.conv0.resample_filter", "dec.16x16_up.skip.resample_filter"} < set(vp)
    assert {"dec.32x32_aux_norm.weight", "dec.32x32_aux_conv.bias", "dec.16x16_block4.affine.bias"} < set(vp)
    assert {"map_noise.freqs", "enc.16x16_aux_residual.weight", "enc.8x8_aux_residual.resample_filter"} < set(ve)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["ddpmpp_uncond", "ddpmpp_cond", "ncsnpp", "pyramids"])
def test_raw_network_equals_the_reference(name: str, dtype: torch.dtype) -> None:
    config, data = golden(name)
    network = SongUNet(**config).eval()
    fill(network)
    network.to(dtype)
    with torch.no_grad():
        output = network(data["x"].to(dtype), data["noise_labels"], data.get("class_labels"))
    tolerance = 2e-5 if dtype == torch.float32 else 1e-6
    torch.testing.assert_close(output.float(), data["output"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_preconditioned_network_equals_the_reference(kind: str) -> None:
    config, data = golden(f"precond_{kind}")
    denoiser = Preconditioned(SongUNet(**config), kind).eval()
    fill(denoiser)
    with torch.no_grad():
        output = denoiser(data["x"], data["sigma"], data["class_labels"])
    # The reference rounds coefficients to float32 before it scales by sigma up to 40.
    scale = data["sigma"].clamp(min=1)[:, None, None, None]
    torch.testing.assert_close(output / scale, data["output"] / scale, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("sigma", [0.002, 0.05, 0.7, 3.0, 80.0])
def test_coefficients_equal_their_formulas(sigma: float) -> None:
    def computed(kind: str) -> list[float]:
        module = Preconditioned(nn.Identity(), kind, sigma_data=0.6)
        return [value.item() for value in module.coefficients(torch.tensor(sigma, dtype=torch.float64))]

    data = 0.6
    root = math.sqrt(sigma**2 + data**2)
    unit = math.sqrt(sigma**2 + 1)
    assert computed("edm") == pytest.approx(
        [data**2 / root**2, sigma * data / root, 1 / root, math.log(sigma) / 4], rel=1e-12
    )
    assert computed("ve") == pytest.approx([1, sigma, 1, math.log(sigma / 2)], rel=1e-12)
    skip, out, scale, label = computed("vp")
    t = label / 999
    assert (skip, out, scale) == pytest.approx((1, -sigma, 1 / unit), rel=1e-12)
    assert math.sqrt(math.expm1(0.5 * 19.9 * t**2 + 0.1 * t)) == pytest.approx(sigma, rel=1e-9)
    skip, out, scale, label = computed("iddpm")
    levels = iddpm_noise_levels().double()
    assert (skip, out, scale) == pytest.approx((1, -sigma, 1 / unit), rel=1e-12)
    assert abs(levels[999 - int(label)] - sigma) == (levels - sigma).abs().min()


def test_trained_ranges_of_noise() -> None:
    ranges = {kind: Preconditioned(nn.Identity(), kind) for kind in KINDS}
    assert (ranges["edm"].sigma_min, ranges["edm"].sigma_max) == (0, math.inf)
    assert (ranges["ve"].sigma_min, ranges["ve"].sigma_max) == (0.02, 100)
    assert ranges["vp"].sigma_min == pytest.approx(1.0005e-3, rel=1e-3)
    assert ranges["vp"].sigma_max == pytest.approx(152.167, rel=1e-5)
    assert ranges["iddpm"].sigma_max == pytest.approx(20291.17, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_x_and_sigma(kind: str) -> None:
    denoiser = small_denoiser(kind, label_dim=10).double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64, requires_grad=True)
    grad_x, grad_sigma = torch.autograd.grad(denoiser(x, sigma).square().sum(), (x, sigma))
    assert grad_x.isfinite().all() and (grad_x != 0).all()
    assert grad_sigma.isfinite().all() and (grad_sigma != 0).all()


@pytest.mark.parametrize("kind", ["edm", "vp", "ve"])
def test_gradient_of_sigma_is_the_slope(kind: str) -> None:
    denoiser = small_denoiser(kind).double()
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    sigma = torch.tensor([0.9], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(denoiser(x, sigma).sum(), sigma)
    with torch.no_grad():
        difference = denoiser(x, sigma + 1e-6).sum() - denoiser(x, sigma - 1e-6).sum()
    assert slope.item() == pytest.approx(difference.item() / 2e-6, rel=1e-6)


def test_labels_are_dropped_in_training_only() -> None:
    denoiser = small_denoiser(label_dim=10, label_dropout=1.0, dropout=0.0)
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 1.5])
    labels = torch.eye(10)[[3, 8]]
    with torch.no_grad():
        unlabelled, labelled = denoiser(x, sigma), denoiser(x, sigma, labels)
        dropped = denoiser.train()(x, sigma, labels)
    assert (unlabelled - labelled).abs().amax() > 1e-3
    torch.testing.assert_close(dropped, unlabelled)


def test_no_labels_means_zero_rows() -> None:
    denoiser = small_denoiser(label_dim=10)
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 1.5])
    torch.testing.assert_close(denoiser(x, sigma), denoiser(x, sigma, torch.zeros(2, 10)))


def test_output_has_the_dtype_of_x_whatever_the_dtype_of_sigma() -> None:
    denoiser = small_denoiser()
    x = torch.randn(2, 1, 8, 8)
    single = denoiser(x, torch.tensor(0.5, dtype=torch.float64))
    double = denoiser(x.double(), torch.tensor(0.5, dtype=torch.float64))
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    torch.testing.assert_close(single, double.float())


def test_samples_do_not_depend_on_the_rest_of_the_batch() -> None:
    denoiser = small_denoiser(label_dim=10).double()
    x, sigma = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    labels = torch.eye(10, dtype=torch.float64)[[1, 2, 3]]
    torch.testing.assert_close(denoiser(x, sigma, labels)[1:2], denoiser(x[1:2], sigma[1:2], labels[1:2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_type": "learned"}, "embedding_type"),
        ({"encoder_type": "dense"}, "encoder_type"),
        ({"decoder_type": "residual"}, "decoder_type"),
        ({"img_resolution": 9}, "halved"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SongUNet(**{**SMALL, **options})


def test_unknown_preconditioning_is_refused() -> None:
    with pytest.raises(ValueError, match="preconditioning"):
        Preconditioned(nn.Identity(), "flow")


def test_classifier_shapes() -> None:
    model = DigitClassifier().eval()
    x = torch.randn(3, 1, 8, 8)
    assert model.features(x).shape == (3, model.num_features)
    assert model(x).shape == (3, 10)
