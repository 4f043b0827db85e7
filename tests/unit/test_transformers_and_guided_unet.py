"""DiT, SiT and the consistency-model U-Net against the published implementations, and their teachers."""

from __future__ import annotations

import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from solverdistill.denoisers.base import Teacher
from solverdistill.networks import DiT, GuidedUNet
from solverdistill.teachers.consistency import ConsistencyTeacher
from solverdistill.teachers.own.teacher import OwnTeacher
from solverdistill.teachers.sit import dit_teacher, sit_teacher

GOLDENS = Path(__file__).parents[1] / "goldens" / "networks"
TINY_DIT: dict[str, Any] = {"input_size": 8, "hidden_size": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
TINY_UNET: dict[str, Any] = {
    "image_size": 8,
    "model_channels": 32,
    "channel_mult": (1, 1),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "head_channels": 16,
}


@torch.no_grad()
def fill(network: nn.Module) -> None:
    """Set every weight by the formula of tests/goldens/networks/README.md."""
    for name, tensor in network.state_dict().items():
        if name != "pos_embed":
            values = 0.1 * np.random.RandomState(zlib.crc32(name.encode())).randn(*tensor.shape)
            tensor.copy_(torch.from_numpy(values + (tensor.ndim == 1 and name.endswith("weight"))))


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Network arguments and arrays of a golden file."""
    with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as data:
        return json.loads(str(data["config"])), {k: torch.from_numpy(data[k]) for k in data.files if k != "config"}


def filled(cls: type[nn.Module], settings: dict[str, Any]) -> Any:
    network = cls(**settings).eval()
    fill(network)
    return network


def labels_of(data: dict[str, Tensor], classes: int) -> Tensor:
    """Labels with the null row, which the reference counts as a class, written as -1."""
    return torch.where(data["labels"] == classes, -1, data["labels"])


TEACHERS = {
    "dit": lambda: dit_teacher(filled(DiT, TINY_DIT), "dit"),
    "sit": lambda: sit_teacher(filled(DiT, TINY_DIT), "sit"),
    "cm": lambda: ConsistencyTeacher(filled(GuidedUNet, TINY_UNET), "cm"),
}


def teacher_of(name: str) -> Teacher:
    return TEACHERS[name]().double()


def levels(name: str) -> tuple[Tensor, Tensor]:
    """Three levels of the teacher's own path, and a fourth outside of its noise range."""
    own = {"dit": [0.0005, 0.0203, 0.6104, 1.0], "sit": [0.0, 0.3, 0.9, 1.0], "cm": [0.001, 0.05, 3.0, 80.0]}[name]
    return teacher_of(name).path.alpha_sigma(torch.tensor(own, dtype=torch.float64))


def noisy(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, *teacher_of(name).shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", ["dit", "sit"])
def test_transformer_equals_the_reference(name: str) -> None:
    config, data = golden(name)
    output = filled(DiT, config)(data["x"], data["times"], labels_of(data, config["num_classes"]))
    assert output.shape[1] == 8
    torch.testing.assert_close(output[:, : data["output"].shape[1]], data["output"], rtol=1e-5, atol=1e-5)


def test_guided_unet_equals_the_reference() -> None:
    config, data = golden("cm_unet")
    output = filled(GuidedUNet, config)(data["x"], data["times"])
    torch.testing.assert_close(output, data["output"], rtol=1e-5, atol=1e-5)


def test_dit_teacher_equals_the_reference_at_its_steps() -> None:
    config, data = golden("dit")
    teacher = dit_teacher(filled(DiT, config), "dit")
    cumprod = data["alphas_cumprod"]
    denoised = teacher(data["x"], cumprod.sqrt(), (1 - cumprod).sqrt(), labels_of(data, 10))
    # The last step multiplies the noise by 158, which is what the tolerance is relative to.
    scale = cumprod.rsqrt().float()[:, None, None, None]
    torch.testing.assert_close(denoised / scale, data["denoised"] / scale, rtol=1e-5, atol=1e-5)


def test_sit_time_runs_from_noise_to_data() -> None:
    config, data = golden("sit")
    teacher = sit_teacher(filled(DiT, config), "sit")
    alpha, sigma = data["times"], 1 - data["times"]
    a, s = alpha[:, None, None, None], sigma[:, None, None, None]
    torch.testing.assert_close(data["state"], a * data["data"] + s * data["noise"])
    torch.testing.assert_close(data["target"], data["data"] - data["noise"])
    denoised = teacher(data["state"], alpha, sigma, labels_of(data, 10))
    torch.testing.assert_close(denoised - data["predicted_noise"], data["velocity"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a * denoised + s * data["predicted_noise"], data["state"], rtol=1e-5, atol=1e-5)


def test_consistency_teacher_equals_the_reference() -> None:
    config, data = golden("cm_unet")
    teacher = ConsistencyTeacher(filled(GuidedUNet, config), "cm")
    denoised = teacher(data["noisy"], torch.ones(3), data["sigma"])
    torch.testing.assert_close(denoised, data["denoised"], rtol=1e-5, atol=1e-5)


def test_sizes_of_the_published_networks() -> None:
    with torch.device("meta"):
        small, large, unet = DiT(), DiT(input_size=64), GuidedUNet()
    assert sum(p.numel() for p in small.parameters()) == 675_129_632
    assert sum(p.numel() for p in large.parameters()) == 676_014_368
    assert sum(p.numel() for p in unet.parameters()) == 526_304_771
    assert (len(small.state_dict()), len(unet.state_dict())) == (292, 566)


def test_tensor_names_of_the_published_transformers() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in DiT().state_dict().items()}
    block = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"]
    layers = ["x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "final_layer.linear"]
    layers += ["final_layer.adaLN_modulation.1", *(f"blocks.{n}.{layer}" for n in range(28) for layer in block)]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert set(shapes) == expected | {"pos_embed", "y_embedder.embedding_table.weight"}
    assert shapes["y_embedder.embedding_table.weight"] == (1001, 1152)
    assert shapes["pos_embed"] == (1, 256, 1152)
    assert shapes["final_layer.linear.weight"] == (2 * 2 * 8, 1152)


def test_tensor_names_of_the_published_unet() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in GuidedUNet().state_dict().items()}
    blocks = {name.split(".")[0] + "." + name.split(".")[1] for name in shapes if "_blocks." in name}
    assert blocks == {f"input_blocks.{n}" for n in range(18)} | {f"output_blocks.{n}" for n in range(18)}
    assert shapes["time_embed.2.weight"] == (1024, 1024)
    assert shapes["input_blocks.0.0.weight"] == (256, 3, 3, 3)
    assert shapes["input_blocks.3.0.in_layers.2.weight"] == (256, 256, 3, 3)
    assert shapes["input_blocks.10.1.qkv.weight"] == (3 * 512, 512, 1, 1)
    assert shapes["middle_block.1.proj_out.bias"] == (1024,)
    assert shapes["output_blocks.2.2.emb_layers.1.weight"] == (1024, 1024)
    assert shapes["output_blocks.17.0.skip_connection.weight"] == (256, 512, 1, 1)
    assert shapes["out.2.weight"] == (3, 256, 3, 3)


@pytest.mark.parametrize("name", TEACHERS)
def test_levels_may_have_any_scale(name: str) -> None:
    teacher, (alpha, sigma), x = teacher_of(name), levels(name), noisy(name)
    scale = torch.tensor([0.3, 7.0, 1.5, 40.0], dtype=torch.float64)
    scaled = teacher(x * scale[:, None, None, None], alpha * scale, sigma * scale)
    torch.testing.assert_close(scaled, teacher(x, alpha, sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TEACHERS)
def test_gradients_reach_x_and_the_level(name: str) -> None:
    teacher, x = teacher_of(name), noisy(name).requires_grad_()
    alpha, sigma = (value.clone().requires_grad_() for value in levels(name))
    gradients = torch.autograd.grad(teacher(x, alpha, sigma).square().sum(), (x, alpha, sigma))
    for value in gradients:
        assert value.isfinite().all() and (value != 0).all()


@pytest.mark.parametrize("name", TEACHERS)
def test_gradient_of_the_level_is_the_slope(name: str) -> None:
    teacher, x = teacher_of(name), noisy(name)[1:3]
    alpha, sigma = (value[1:3].clone() for value in levels(name))
    step = 1e-7 * sigma

    def total(value: Tensor) -> Tensor:
        return teacher(x, alpha, value).flatten(1).sum(1)

    slopes = torch.autograd.functional.jacobian(total, sigma).diagonal()
    differences = (total(sigma + step) - total(sigma - step)) / (2 * step)
    torch.testing.assert_close(slopes, differences, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("name", TEACHERS)
def test_forward_mode_agrees_with_reverse_mode(name: str) -> None:
    teacher, x, (alpha, sigma) = teacher_of(name), noisy(name)[1:3], levels(name)
    alpha, sigma = alpha[1:3], sigma[1:3]
    directions = torch.eye(2, dtype=torch.float64)

    def run(value: Tensor) -> Tensor:
        return teacher(x, alpha, value).flatten(1).sum(1)

    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # Torch's own forward derivative of group normalisation is still a script.
        warnings.filterwarnings("ignore", ".*torch.jit.script.*is deprecated", FutureWarning)
        forward = torch.vmap(lambda direction: torch.func.jvp(run, (sigma,), (direction,))[1])(directions)
    torch.testing.assert_close(forward.T, torch.autograd.functional.jacobian(run, sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["dit", "sit"])
def test_label_minus_one_is_the_null_row(name: str) -> None:
    teacher, x = teacher_of(name), noisy(name)
    alpha, sigma = (value[2].expand(4) for value in levels(name))
    unconditional = teacher(x, alpha, sigma)
    labels = torch.tensor([-1, 0, 4, -1])
    mixed = teacher(x, alpha, sigma, labels)
    torch.testing.assert_close(mixed[[0, 3]], unconditional[[0, 3]])
    assert (mixed[1:3] - unconditional[1:3]).abs().amin(dim=(1, 2, 3)).max() > 1e-6
    torch.testing.assert_close(teacher(x, alpha, sigma, teacher.null_cond(labels)), unconditional)
    assert teacher.num_classes == 5


def test_variance_channels_are_dropped() -> None:
    config = {**TINY_DIT, "learn_sigma": False}
    both, one = filled(DiT, TINY_DIT), filled(DiT, config)
    state = both.state_dict()
    for kind in ("weight", "bias"):
        last = state[f"final_layer.linear.{kind}"].unflatten(0, (2, 2, 8))[:, :, :4]
        state[f"final_layer.linear.{kind}"] = last.flatten(0, 2)
    one.load_state_dict(state)
    x, (alpha, sigma) = noisy("dit").float(), levels("dit")
    torch.testing.assert_close(
        dit_teacher(both, "dit")(x, alpha, sigma), dit_teacher(one, "dit")(x, alpha, sigma), rtol=1e-5, atol=1e-4
    )


def test_discrete_times_are_those_of_the_path() -> None:
    teacher = TEACHERS["dit"]()
    assert isinstance(teacher, OwnTeacher)
    own = torch.tensor([0.0004, 0.001, 0.4385, 0.5, 1.0, 1.02], dtype=torch.float64)
    alpha, sigma = teacher.path.alpha_sigma(own)
    torch.testing.assert_close(teacher.times(3 * alpha, 3 * sigma), 1000 * own - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TEACHERS)
def test_result_is_at_least_float32_and_float64_stays(name: str) -> None:
    teacher, x, (alpha, sigma) = TEACHERS[name](), noisy(name), levels(name)
    precise = teacher_of(name)(x, alpha, sigma)
    single = teacher(x.float(), alpha.float(), sigma.float())
    assert precise.dtype == torch.float64 and single.dtype == torch.float32
    assert teacher(x.half(), alpha, sigma).dtype == torch.float32
    # An eps network's error is multiplied by sigma / alpha.
    scale = (1 + sigma / alpha if name == "dit" else torch.ones(4))[:, None, None, None]
    torch.testing.assert_close(single / scale, precise / scale, rtol=1e-4, atol=1e-4, check_dtype=False)


def test_teachers_state_their_own_path_and_range() -> None:
    dit, sit, cm = (TEACHERS[name]() for name in ("dit", "sit", "cm"))
    assert (dit.path.name, dit.noise_range, dit.prediction) == ("discrete", (1.0, 0.001), "eps")
    assert (sit.path.name, sit.noise_range, sit.prediction) == ("flow", (1.0, 0.001), "flow")
    assert (cm.path.name, cm.noise_range, cm.prediction, cm.num_classes) == ("edm", (80.0, 0.002), "denoised", 0)
    assert (dit.shape, sit.shape, cm.shape) == ((4, 8, 8), (4, 8, 8), (3, 8, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiT(input_size=7), "input_size 7"),
        (lambda: DiT(hidden_size=100, num_heads=16), "hidden_size 100"),
        (lambda: GuidedUNet(image_size=48), "image_size 48"),
        (lambda: GuidedUNet(model_channels=48), "model_channels 48"),
        (lambda: GuidedUNet(head_channels=48), "heads of 48"),
    ],
)
def test_wrong_sizes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        make()
