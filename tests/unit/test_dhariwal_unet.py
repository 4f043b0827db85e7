"""The ADM U-Net against the published architecture."""

from __future__ import annotations

import pytest
import torch

from solverdistill.networks.dhariwal_unet import DhariwalUNet
from solverdistill.networks.preconditioning import Preconditioned
from tests.test_networks import KINDS, fill, golden

SMALL = {"model_channels": 64, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,)}


def test_size_and_tensor_names_of_the_published_network() -> None:
    with torch.device("meta"):
        network = DhariwalUNet(64, 3, 3, label_dim=1000)
    state = Preconditioned(network).state_dict()
    assert sum(p.numel() for p in network.parameters()) == 295_899_267
    assert len(state) == 553 and all(name.startswith("model.") for name in state)
    names = {name.removeprefix("model.") for name in state}
    assert {"map_layer0.bias", "map_layer1.weight", "map_label.weight", "out_norm.weight", "out_conv.bias"} < names
    assert "map_label.bias" not in names
    assert {"enc.64x64_conv.weight", "enc.32x32_down.skip.resample_filter", "enc.32x32_block2.qkv.weight"} < names
    assert {"dec.8x8_in0.proj.bias", "dec.16x16_up.conv0.resample_filter", "dec.64x64_block3.skip.weight"} < names
    assert not names & {"enc.32x32_down.skip.weight", "enc.64x64_block0.qkv.weight", "dec.8x8_in1.qkv.weight"}
    assert state["model.enc.32x32_block0.affine.weight"].shape == (2 * 384, 768)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["adm_uncond", "adm_cond"])
def test_raw_network_equals_the_reference(name: str, dtype: torch.dtype) -> None:
    config, data = golden(name)
    network = DhariwalUNet(**config).eval()
    fill(network)
    network.to(dtype)
    with torch.no_grad():
        output = network(data["x"].to(dtype), data["noise_labels"], data.get("class_labels"))
    # Frequencies of the embedding are float32 whatever the network, as published: times angles up to 999 in "adm_cond"
    # their last place, in which kinds of CPU differ, is 6e-5.
    tolerances = {"adm_uncond": (1e-5, 1e-6), "adm_cond": (5e-5, 1e-5)}
    tolerance = tolerances[name][dtype == torch.float64]
    torch.testing.assert_close(output.float(), data["output"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_preconditioned_network_equals_the_reference(kind: str) -> None:
    config, data = golden(f"adm_precond_{kind}")
    denoiser = Preconditioned(DhariwalUNet(**config), kind).eval()
    fill(denoiser)
    # The output is scaled by sigma, up to 40, and so is what float32 rounds off.
    scale = data["sigma"].clamp(min=1)[:, None, None, None]
    with torch.no_grad():
        single = denoiser(data["x"], data["sigma"], data["class_labels"])
        double = denoiser.double()(data["x"].double(), data["sigma"].double(), data["class_labels"])
    labels = 1e-5 if kind in ("vp", "iddpm") else 1e-6  # of up to 999; see above
    torch.testing.assert_close(double.float() / scale, data["output_float64"] / scale, rtol=labels, atol=labels)
    # In float32 a noise label near 999 ("vp") is known to 6e-5 only, to the original as to us.
    tolerance = 1e-4 if kind == "vp" else 1e-5
    torch.testing.assert_close(single / scale, data["output"] / scale, rtol=tolerance, atol=tolerance)


def test_no_labels_means_zero_rows_and_dropped_labels() -> None:
    denoiser = Preconditioned(DhariwalUNet(8, 1, 1, label_dim=10, label_dropout=1.0, dropout=0.0, **SMALL)).eval()
    fill(denoiser)
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 1.5]), torch.eye(10)[[3, 8]]
    with torch.no_grad():
        none, labelled = denoiser(x, sigma), denoiser(x, sigma, labels)
        torch.testing.assert_close(none, denoiser(x, sigma, torch.zeros(2, 10)))
        assert (none - labelled).abs().amax() > 1e-3
        torch.testing.assert_close(denoiser.train()(x, sigma, labels), none)


def test_gradients_reach_x_and_sigma_and_samples_are_independent() -> None:
    denoiser = Preconditioned(DhariwalUNet(8, 1, 1, **SMALL)).eval()
    fill(denoiser)
    denoiser.double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64, requires_grad=True)
    output = denoiser(x, sigma)
    for gradient in torch.autograd.grad(output.square().sum(), (x, sigma)):
        assert gradient.isfinite().all() and (gradient != 0).all()
    torch.testing.assert_close(denoiser(x[1:], sigma[1:]), output[1:])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:FutureWarning")
def test_forward_mode_equals_the_difference_quotient() -> None:
    denoiser = Preconditioned(DhariwalUNet(8, 1, 1, **SMALL)).eval().requires_grad_(False)
    fill(denoiser)
    denoiser.double()
    x, direction = torch.randn(2, 1, 1, 8, 8, dtype=torch.float64).unbind()
    sigma = torch.tensor([0.7], dtype=torch.float64)
    _, slope = torch.func.jvp(denoiser, (x, sigma), (direction, torch.ones_like(sigma)))
    h = 1e-5
    quotient = (denoiser(x + h * direction, sigma + h) - denoiser(x - h * direction, sigma - h)) / (2 * h)
    torch.testing.assert_close(slope, quotient, rtol=1e-6, atol=1e-6)


def test_resolution_must_halve() -> None:
    with pytest.raises(ValueError, match="img_resolution 9 cannot be halved 1 times"):
        DhariwalUNet(9, 1, 1, **SMALL)
