"""Networks from the plain state dicts of their authors: transformers of DiT and SiT, U-Nets of consistency models.

A file of `torch.save` or a safetensors file holds the tensors by name, possibly under "ema" next to a training state
that is not looked at. Half precision becomes float32. The network is built from the card of the teacher, and a file
that disagrees with it is refused.
"""

from __future__ import annotations

import inspect
import logging
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from solverdistill.networks.dit import DiT
from solverdistill.networks.guided_unet import GuidedUNet
from solverdistill.support.files import expand
from solverdistill.teachers.checkpoints.cards import Card, card
from solverdistill.teachers.checkpoints.download import fetch
from solverdistill.teachers.nvlabs import RANDOM, check_state, read_weights

NETWORKS: dict[str, type[DiT] | type[GuidedUNet]] = {"DiT": DiT, "GuidedUNet": GuidedUNet}

log = logging.getLogger(__name__)


def load_checkpoint(
    name: str,
    network: str,
    weights: str | os.PathLike[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[Any, str]:
    """Build the network of a card and give it its weights.

    Args:
        name: Name of the card.
        network: Class that the caller can use, a key of `NETWORKS`.
        weights: None takes the published file from the cache folder, or downloads it; a path takes another file;
            "random" makes random weights, to measure speed only.
        arguments: Arguments of the network that differ from the card's, for a file of one's own training.
        seed: Seed of the random weights.
    Returns:
        The network in float32 and the teacher's name: that of the card, followed by "-custom" where `arguments` differ
        and by "-random" for random weights.
    Raises:
        FileNotFoundError: the file is not there and cannot be downloaded.
        ValueError: there is no such card, the arguments do not fit, or the file is not that of the network.
    """
    facts = card(name)
    if facts.config.get("network") != network:
        raise ValueError(f"checkpoint {name} is no {network}; take a card that is, or the loader of this one")
    if arguments and weights is None:
        raise ValueError(f"model.network changes the network of {name}, whose published file then does not fit; name "
                         "your own file in model.weights")  # fmt: skip
    wanted = {**facts.config["arguments"], **(arguments or {})}
    label = f"{name}-custom" if arguments else name
    if weights == RANDOM:
        log.warning("%s has RANDOM WEIGHTS (model.weights=random): it measures speed, and its samples are noise", name)
        return random_network(facts, wanted, seed), f"{label}-random"
    path = fetch(facts) if weights is None else expand(weights)
    return load_network(facts, wanted, path), label


def load_network(facts: Card, arguments: Mapping[str, Any], path: Path) -> nn.Module:
    """Build the network of a card with the tensors of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds another network.
    """
    # A training checkpoint keeps its command line, a plain record that is not looked at.
    with torch.serialization.safe_globals([Namespace]):
        tensors = read_weights(facts, path)
    network = _build(facts, {**arguments, **_learned_variance(facts, arguments, tensors)})
    check_state(facts, path, {key: tuple(value.shape) for key, value in network.state_dict().items()}, tensors)
    network.load_state_dict({key: value.to(torch.float32) for key, value in tensors.items()}, assign=True)
    return network


def random_network(facts: Card, arguments: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The network of a card with weights N(0, 1 / fan-in), the same ones for the same seed."""
    network = _build(facts, arguments).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in network.named_parameters():
            if value.ndim > 1:
                value.normal_(std=value[0].numel() ** -0.5, generator=generator)
            else:
                value.fill_(0.0 if key.endswith("bias") else 1.0)
        if isinstance(network, DiT):
            network.reset_positions()
    return network


def _build(facts: Card, arguments: Mapping[str, Any]) -> nn.Module:
    """The network without memory for its weights."""
    cls = NETWORKS[facts.config["network"]]
    known = inspect.signature(cls).parameters
    for key in arguments:
        if key not in known:
            raise ValueError(f"model.network has no argument {key!r}; {cls.__name__} takes: {', '.join(known)}")
    with torch.device("meta"):
        return cls(**arguments)


def _learned_variance(facts: Card, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, bool]:
    """Whether a transformer's file has variance channels, which depends on how it was trained."""
    if facts.config["network"] != "DiT" or "learn_sigma" in arguments or "final_layer.linear.bias" not in tensors:
        return {}
    plain = _build(facts, {**arguments, "learn_sigma": False}).state_dict()["final_layer.linear.bias"]
    return {"learn_sigma": tensors["final_layer.linear.bias"].shape != plain.shape}
