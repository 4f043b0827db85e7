"""A live module or function as a teacher: the same numbers, the user's module untouched, edits noticed."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import solverdistill
from solverdistill import Grid, families
from solverdistill.denoisers.wrappers import Guided
from solverdistill.references.solving import Reference
from solverdistill.references.targets import TargetSettings, make_targets
from solverdistill.teachers.mixture import toy_mixture
from solverdistill.teachers.own.load import load_own
from solverdistill.teachers.own.wrap import wrap

VP: dict[str, Any] = {"prediction": "eps", "noise_schedule": "vp", "shape": (5,), "noise_range": (0.9, 0.01)}


class Network(nn.Module):
    """Small, with everything that depends on the mode, two tied weights and an optional class."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, 5)
        self.hidden, self.again = nn.Linear(8, 8), nn.Linear(8, 8)
        self.again.weight = self.hidden.weight
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.labels = nn.Embedding(classes, 8) if classes else None

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        hidden = self.enter(torch.cat([x, time[:, None]], dim=1))
        if self.labels is not None:
            hidden = hidden + self.labels(label)
        hidden = self.again(torch.tanh(self.hidden(self.drop(self.norm(hidden)))))
        return self.leave(torch.tanh(hidden))


def make_network(classes: int = 0) -> Network:
    """What `load_own` is told the name of."""
    torch.manual_seed(0)
    return Network(classes)


def asked(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return (
        torch.randn(3, 5, dtype=dtype),
        torch.tensor([0.9, 0.6, 0.1]).to(dtype),
        torch.tensor([0.2, 0.8, 1.4]).to(dtype),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_live_module_is_what_its_dotted_name_gives(dtype: torch.dtype) -> None:
    named = load_own(f"{__name__}.make_network", **VP)
    live = solverdistill.wrap(make_network(), **VP)
    assert torch.equal(live(*asked(dtype)), named(*asked(dtype)))
    assert live.name == "Network" and live.shape == named.shape and live.noise_range == named.noise_range


def test_classes_are_passed_as_for_a_dotted_name() -> None:
    options = {**VP, "num_classes": 3, "null_label": 3}
    named = load_own(f"{__name__}.make_network", arguments={"classes": 4}, **options)
    network, labels = make_network(4).eval(), torch.tensor([0, 2, -1])
    function = wrap(lambda x, time, label: network(x, time, label), **options)
    for live in (wrap(network, **options), function):
        assert torch.equal(live(*asked(), labels), named(*asked(), labels))
        assert torch.equal(live(*asked()), named(*asked()))
        guided = Guided(live, 2.0, live.null_cond)(*asked(), labels)
        assert torch.equal(guided, Guided(named, 2.0, named.null_cond)(*asked(), labels))


def test_the_users_module_is_untouched() -> None:
    network = make_network()
    network.leave.bias.requires_grad_(False)
    network.drop.eval()
    modes = [part.training for part in network.modules()]
    flags = {name: value.requires_grad for name, value in network.named_parameters()}
    state = {name: value.clone() for name, value in network.state_dict().items()}
    places = {name: value.data_ptr() for name, value in network.state_dict().items()}
    teacher = wrap(network, **VP, running={"channels_last": True})
    x, alpha, sigma = asked()
    teacher.train()
    teacher(x.requires_grad_(), alpha, sigma).sum().backward()
    teacher.to(torch.float64)
    assert [part.training for part in network.modules()] == modes and modes.count(True) == len(modes) - 1
    assert {name: value.requires_grad for name, value in network.named_parameters()} == flags
    assert all(value.grad is None for value in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]) and value.data_ptr() == places[name], name
    network(torch.randn(4, 5), torch.rand(4)).sum().backward()
    assert network.enter.weight.grad is not None and bool((network.norm.running_mean != 0).any())


def test_the_teacher_is_frozen_shares_the_weights_and_follows_their_training() -> None:
    network = make_network()
    teacher = wrap(network, **VP)
    assert not any(value.requires_grad for value in teacher.parameters())
    assert not any(part.training for part in teacher.modules())
    own = {value.data_ptr() for value in network.state_dict().values()}
    assert {value.data_ptr() for value in teacher.state_dict().values()} == own
    copied = teacher.network.network
    assert isinstance(copied, Network) and copied.again.weight is copied.hidden.weight
    before, fingerprint = teacher(*asked()), teacher.fingerprint()
    with torch.no_grad():
        network.enter.weight += 0.1
    assert not torch.equal(teacher(*asked()), before) and teacher.fingerprint() != fingerprint


@pytest.mark.parametrize("kind", ["module", "method", "function"])
def test_the_gradient_in_x_is_that_of_finite_differences(kind: str) -> None:
    network = make_network().double().eval()
    teacher = wrap({"module": network, "method": network.forward, "function": lambda x, t: network(x, t)}[kind], **VP)
    x, alpha, sigma = asked(torch.float64)
    direction, h = torch.randn_like(x), 1e-6
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(teacher(x, alpha, sigma).sum(), x)
    with torch.no_grad():
        there, back = (teacher(x + sign * h * direction, alpha, sigma).sum(1) for sign in (1, -1))
    torch.testing.assert_close((gradient * direction).sum(1), (there - back) / (2 * h), rtol=1e-7, atol=1e-8)
    assert network.enter.weight.grad is None


def test_a_method_brings_a_frozen_view_of_its_module() -> None:
    network = make_network()
    teacher = wrap(network.forward, **VP)
    assert torch.equal(teacher(*asked()), wrap(network, **VP)(*asked()))
    assert network.training and network.enter.weight.requires_grad
    assert len(list(teacher.parameters())) == len(list(network.parameters()))


def test_an_edit_changes_the_fingerprint_of_a_function_and_of_a_module() -> None:
    def teacher(function: Callable[..., Any]) -> Any:
        return wrap(function, **VP, name="same")

    factor = 2.0
    first = teacher(lambda x, time: factor * x)
    found = first.fingerprint()
    assert first.fingerprint() == found == teacher(lambda x, time: factor * x).fingerprint()
    factor = 2.0000001
    assert first.fingerprint() != found  # what it closes over
    prints = {teacher(function).fingerprint() for function in (lambda x, time: x, lambda x, time: x + 1e-6)}
    assert len(prints) == 2
    first, second = make_network(), make_network()
    assert teacher(first).fingerprint() == teacher(second).fingerprint()
    edited = type("Network", (Network,), {"forward": lambda self, x, time: 2 * Network.forward(self, x, time)})
    edited.__module__, edited.__qualname__ = Network.__module__, Network.__qualname__
    second.__class__ = edited
    assert teacher(first).fingerprint() != teacher(second).fingerprint()


def test_an_edit_of_what_no_class_means_changes_the_fingerprint() -> None:
    without = 0.5
    classes = {"num_classes": 10, "null_label": 10}
    teacher = wrap(lambda x, time, label: torch.where(label == 10, without, 1.0)[:, None] * x, **VP, **classes)
    found = teacher.fingerprint()
    without = 0.25
    assert teacher.fingerprint() != found  # guidance asks it


def test_a_named_function_is_noticed_too_and_a_named_module_keeps_its_fingerprint() -> None:
    target = f"{__name__}.loaded"
    globals()["loaded"] = lambda: lambda x, time: x
    before = load_own(target, **VP).fingerprint()
    globals()["loaded"] = lambda: lambda x, time: 2 * x
    assert load_own(target, **VP).fingerprint() != before
    module = load_own("torch.nn.PReLU", **VP, call="x", arguments={"num_parameters": 5})
    assert module.fingerprint() == "2a84b56f3beb4ca7"  # as before functions were asked


def test_cached_targets_of_an_edited_function_are_not_stale(tmp_path: Path) -> None:
    settings = TargetSettings(Reference(steps=4), validation_samples=2, cache=str(tmp_path), chunk=2)

    def ends(function: Callable[..., Any]) -> Tensor:
        teacher = wrap(function, **VP, name="mine")
        return make_targets(settings, "validation", teacher, teacher).batch.end

    first = ends(lambda x, time: 0.5 * x)
    assert torch.equal(ends(lambda x, time: 0.5 * x), first) and len(list(tmp_path.iterdir())) == 1
    assert not torch.equal(ends(lambda x, time: 0.4 * x), first)


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float64])
def test_a_function_is_given_the_dtype_that_it_takes(own: torch.dtype) -> None:
    layer = nn.Linear(5, 5, dtype=own)
    teacher = wrap(lambda x, time: layer(x), **VP)
    assert teacher.dtype == own
    for dtype in (torch.float32, torch.float64):
        assert teacher(*asked(dtype)).dtype == dtype
    assert {variant.dtype for variant in teacher.variants().values()} == {own}  # pyright: ignore
    both = wrap(lambda x, time: 0.3 * x, **VP)
    x, alpha, sigma = asked(torch.float64)
    exact = (x - sigma[:, None] / torch.hypot(alpha, sigma)[:, None] * 0.3 * x) / alpha[:, None]
    assert both.dtype is None
    torch.testing.assert_close(both(x, alpha, sigma), exact, rtol=1e-14, atol=1e-14)


def test_a_function_of_a_float32_network_has_targets() -> None:
    layer = nn.Linear(5, 5)
    teacher = wrap(lambda x, time: layer(x), **VP)
    settings = TargetSettings(Reference(steps=4), validation_samples=2, cache=None)
    family = families.build("dpmpp", Grid("polynomial", 2, *teacher.noise_range), teacher.path)
    targets = make_targets(settings, "validation", teacher, teacher, family)
    assert bool(targets.batch.targets.isfinite().all())


class Remembering(nn.Module):
    """Keeps what it computed with its history, which deepcopy refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.outputs = [self.layer(torch.ones(1, 5))]

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    ("network", "change", "message"),
    [
        (lambda x, time: x[:, :2], {}, "the network of lambda returns (2, 2) for x of shape (2, 5)"),
        (lambda x, time: x.sum(), {}, "the network of lambda returns () for x of shape (2, 5)"),
        (lambda x, time: x / 0, {}, "returns numbers that are not finite"),
        (
            lambda x, time: x * torch.exp(10 * time[:, None]),
            {"time_scale": 1000.0},
            "returns numbers that are not finite for noise; with time_scale=1 they are",
        ),
        (lambda x, time: torch.randn_like(x), {}, "returns other numbers when called again"),
        (lambda x: x, {}, "cannot be called with (x, time): too many positional arguments; say in call="),
        (lambda x, time, label: x, {}, "(x, time): missing a required argument: 'label'; say in call="),
        (lambda x, time: x, {"num_classes": 3}, "cannot be called with (x, time, label): too many positional"),
        (lambda x, t: torch.cat([x, t], 1)[:, :5], {}, "takes times of shape (batch, 1): say time_shape=[1]"),
        (lambda x, t: x * t, {"shape": (1,)}, "takes times of shape (batch, 1): say time_shape=[1]"),
        (lambda x, t: x * t, {"shape": (2,)}, "takes times of shape (batch, 1): say time_shape=[1]"),
        (lambda x, t: x @ torch.ones(3, 3), {}, "fails on (x, time) = ((2, 5) torch.float32, (2,) torch.float32): mat"),
        (Network, {}, "not the class Network: call it first"),
        ("my_package.load", {}, "wrap takes a module or a function, not 'my_package.load'"),
        (toy_mixture(), {}, "not mixture, a Teacher, which is used itself"),
        (Remembering(), {}, "a Remembering cannot be copied and frozen (Only Tensors created explicitly"),
        (lambda x, time: x, {"prediction": "score"}, "prediction 'score' is unknown"),
        (lambda x, time: x, {"data_range": (1, 0)}, "data_range must be two ascending numbers"),
    ],
)
def test_mistakes_are_one_sentence(network: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        wrap(network, **{**VP, **change})


def test_a_network_without_a_gradient_is_told_and_works() -> None:
    with pytest.warns(UserWarning, match="no gradient reaches the input of lambda"):
        teacher = wrap(lambda x, time: x.detach(), **VP)
    assert bool(teacher(*asked()).isfinite().all())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        wrap(lambda x, time: x, **VP)  # a caller without gradients says nothing about the network


def test_names_are_those_of_functions_and_classes() -> None:
    def my_function(x: Tensor, time: Tensor) -> Tensor:
        return x

    class Callable_:
        def __call__(self, x: Tensor, time: Tensor) -> Tensor:
            return x

    found = {
        network: wrap(network, **VP).name for network in (my_function, Callable_(), functools.partial(my_function))
    }
    assert list(found.values()) == ["my_function", "Callable_", "partial"]
    assert wrap(my_function, **VP, name="other").name == "other"


@pytest.mark.parametrize("old", [True, False])
def test_reparametrised_and_compiled_modules_are_viewed_too(old: bool) -> None:
    network = make_network().eval()
    if old:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(network.leave)
    else:
        nn.utils.parametrizations.weight_norm(network.leave)
    network(torch.randn(4, 5), torch.rand(4)).sum().backward()
    torch.testing.assert_close(wrap(network, **VP)(*asked()), wrap(make_network(), **VP)(*asked()))


def test_integer_times_and_labels_as_rows() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def network(x: Tensor, labels: Tensor, *, t: Tensor) -> Tensor:
        seen.append((labels, t))
        return x * labels.sum(1, keepdim=True)

    options = {**VP, "noise_schedule": "discrete", "noise_range": None, "discrete_times": True, "num_classes": 3}
    teacher = wrap(network, **options, call="x, label, t=time", condition="onehot")
    assert all(t.dtype == torch.int64 and labels.shape == (2, 3) for labels, t in seen)
    assert teacher.noise_range == (1.0, 0.001)
