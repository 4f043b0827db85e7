"""Teachers from the checkpoints that were released with EDM, and from files of the same networks.

A checkpoint is a pickle with the network under "ema"; it is read by `support.pickles`, which runs nothing of it.
Plain state dicts (`torch.save`) and safetensors files with the same tensor names load as well. The network itself is
built from the card of the teacher, and a file that disagrees with its card is refused.

Reference: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverdistill.networks.dhariwal_unet import DhariwalUNet
from solverdistill.networks.preconditioning import Preconditioned
from solverdistill.networks.song_unet import SongUNet
from solverdistill.support.arrays import check_size, plain_problem, read_safetensors
from solverdistill.support.files import expand
from solverdistill.support.limits import Allowance, shown
from solverdistill.support.pickles import PersistentObject, file_kind, read_pickle, read_torch, state_dict_of
from solverdistill.teachers.checkpoints.cards import Card, card
from solverdistill.teachers.checkpoints.download import fetch
from solverdistill.teachers.edm import EDMTeacher
from solverdistill.teachers.running import FrozenNetwork, Running

NETWORKS: dict[str, type[SongUNet] | type[DhariwalUNet]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
PRECONDITIONINGS = {"edm": "EDMPrecond", "vp": "VPPrecond", "ve": "VEPrecond", "iddpm": "iDDPMPrecond"}
# Defaults of the released code where ours differ: a pickle names only what it does not leave to them.
RELEASED_DEFAULTS: dict[str, dict[str, Any]] = {"SongUNet": {"channel_mult": (1, 2, 2, 2)}, "DhariwalUNet": {}}
# Matter in training only.
TRAINING_ONLY = {"dropout", "label_dropout", "augment_dim"}
CONSTANTS = {"sigma_data": "sigma_data", "beta_d": "beta_d", "beta_min": "beta_min", "M": "steps"}
RANDOM = "random"
AUGMENT = "model.map_augment.weight"

log = logging.getLogger(__name__)


def edm_checkpoint(
    name: str,
    weights: str | os.PathLike[str] | None = None,
    running: Running | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> EDMTeacher:
    """Load a released EDM network as a teacher.

    Args:
        name: Name of the card, for example "edm_cifar".
        weights: None takes the released file from the cache folder, or downloads it; a path takes a file of the same
            network (pickle, state dict of `torch.save` or safetensors); "random" makes a network with random weights,
            to measure speed only, whose name ends in "-random".
        running: How the network is run.
        seed: Seed of the random weights.
    Returns:
        The teacher, sampled between the noise levels of its card, or of its preconditioning where the card has none.
    Raises:
        FileNotFoundError: the file is not there and cannot be downloaded.
        ValueError: there is no such card, or the file is not that of the card's network.
    """
    facts, running = card(name), Running.of(running)
    if facts.config.get("network") not in NETWORKS:
        raise ValueError(f"checkpoint {name} is no EDM network; edm_checkpoint cannot load it")
    if running.attention is not None:
        raise ValueError(f"running.attention={running.attention} has no effect on the EDM networks; leave it null")
    if weights == RANDOM:
        log.warning("%s has RANDOM WEIGHTS (model.weights=random): it measures speed, and its samples are noise", name)
        net, name = random_network(facts, seed), f"{name}-random"
    else:
        path = fetch(facts) if weights is None else expand(weights)
        net = load_network(facts, path)
    arguments, kind = facts.config["arguments"], facts.config["preconditioning"]
    limits = facts.config.get("noise_range") or (net.sigma_max, net.sigma_min)
    net.model = FrozenNetwork(net.model, running)
    shape = (arguments["in_channels"], arguments["img_resolution"], arguments["img_resolution"])
    if not (math.isfinite(limits[0]) and limits[1] > 0):
        raise ValueError(f"card of {facts.name} needs a noise_range, which the preconditioning {kind} does not have")
    return EDMTeacher(net, name, shape, (float(limits[0]), float(limits[1])), arguments.get("label_dim", 0))


def random_network(facts: Card, seed: int = 0) -> Preconditioned:
    """The network of a card with weights N(0, 1 / fan-in), the same ones for the same seed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net = build(facts, facts.config["arguments"])
        for key, value in net.named_parameters():
            if value.ndim > 1:
                value.normal_(std=value[0].numel() ** -0.5)
            elif key.endswith("bias"):
                value.zero_()
    return net


def build(facts: Card, arguments: Mapping[str, Any]) -> Preconditioned:
    """Build the preconditioned network of a card with the given arguments."""
    network = NETWORKS[facts.config["network"]](**arguments)
    # Outside of the meta device, where the levels of "iddpm" could not be computed.
    with torch.device("cpu"):
        return Preconditioned(network, facts.config["preconditioning"])


def load_network(facts: Card, path: Path) -> Preconditioned:
    """Build the network of a card with the tensors of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds another network.
    """
    tensors = read_weights(facts, path)
    arguments = dict(facts.config["arguments"])
    arguments["augment_dim"] = tensors[AUGMENT].shape[-1] if AUGMENT in tensors and tensors[AUGMENT].ndim else 0
    with torch.device("meta"):
        net = build(facts, arguments)
    check_state(facts, path, {key: tuple(value.shape) for key, value in net.state_dict().items()}, tensors)
    single = {key: value.to(torch.float32) for key, value in tensors.items()}
    net.load_state_dict(single, assign=True)
    return net


def read_weights(facts: Card, path: Path) -> dict[str, Tensor]:
    """Read the state dict of a network from any of the three kinds of files."""
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} of {facts.name} does not exist")
    kind = file_kind(path)
    if kind == "pickle":
        content = read_pickle(path)
        network = content.get("ema") if isinstance(content, dict) else content
        if not isinstance(network, PersistentObject):
            raise ValueError(f"file {path} holds no network under the key 'ema'")
        check_record(facts, path, network)
        return state_dict_of(network)
    if kind == "safetensors":
        content = read_safetensors(path)
    else:
        content = read_torch(path)
        content = content.get("ema", content) if isinstance(content, dict) else content
    names_tensors = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
    if not names_tensors:
        raise ValueError(f"file {path} is no state dict: it holds more than tensors by name")
    return dict(content)


def check_record(facts: Card, path: Path, record: PersistentObject) -> None:
    """Compare what a pickled network says about itself with its card.

    Raises:
        ValueError: they differ; the message names the first difference.
    """
    where, config = f"as the card of {facts.name} states", facts.config
    wanted = PRECONDITIONINGS[config["preconditioning"]]
    if record.class_name != wanted:
        raise ValueError(f"file {path} holds {record.class_name} and not {wanted} {where}")
    network = record.part("modules").get("model")
    if not isinstance(network, PersistentObject) or network.class_name != config["network"]:
        found = network.class_name if isinstance(network, PersistentObject) else "no network"
        raise ValueError(f"file {path} holds {found} and not {config['network']} {where}")
    with torch.device("meta"):
        net = build(facts, config["arguments"])
    for theirs, ours in CONSTANTS.items():
        said = record.state.get(theirs, getattr(net, ours))
        if not isinstance(said, (int, float)) or said != getattr(net, ours):
            raise ValueError(
                f"file {path} was made with {theirs}={shown(said)} and not {getattr(net, ours)}, which is the "
                "only value known here"
            )
    defaults = {
        key: option.default for key, option in inspect.signature(NETWORKS[network.class_name]).parameters.items()
    }
    expected = defaults | config["arguments"]
    found = defaults | RELEASED_DEFAULTS[network.class_name] | network.init_kwargs
    for key in sorted(set(expected) - TRAINING_ONLY):
        if found[key] is not inspect.Parameter.empty and not _same(found[key], expected[key]):
            ours, theirs = _plain(expected[key]), _plain(found[key])
            raise ValueError(f"file {path} was made with {key}={theirs} and not {ours} {where}")


def _plain(value: Any) -> str:
    return value[:60] if isinstance(value, str) else shown(list(value) if isinstance(value, tuple) else value)


def _same(found: Any, expected: Any) -> bool:
    """Whether a file's value, which may be anything, is a number, a word, or a list of them of ours."""
    if isinstance(expected, (list, tuple)):
        same_length = isinstance(found, (list, tuple)) and len(found) == len(expected)
        return same_length and all(_same(*pair) for pair in zip(found, expected, strict=True))
    return (found is None or isinstance(found, (bool, int, float, str))) and found == expected


def check_state(facts: Card, path: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if the tensors of a file are not those of the network, or would not fit its size."""
    wrong = f"file {path} is not the {facts.config['network']} of {facts.name}"
    for what, keys in (("lacks", expected.keys() - found.keys()), ("has the unknown", found.keys() - expected.keys())):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"{wrong}: it {what} tensor {min(keys)}{more}")
    for key, shape in expected.items():
        if tuple(found[key].shape) != shape:
            raise ValueError(f"{wrong}: its tensor {key} has shape {tuple(found[key].shape)} and not {shape}")
        if not found[key].is_floating_point():
            raise ValueError(f"{wrong}: its tensor {key} holds {found[key].dtype} numbers")
        if problem := plain_problem(found[key]):
            raise ValueError(f"{wrong}: its tensor {key} {problem}")
    check_size(Allowance.of(path), found.values(), 4)
