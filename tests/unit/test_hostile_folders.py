"""Damaged pipeline folders, schedules, caches and prompt files: one sentence each, whatever they say."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from solverdistill.consumers.diffusers_config import scheduler_config
from solverdistill.families import build
from solverdistill.references.shard_cache import ShardCache
from solverdistill.teachers import diffusers as teachers
from solverdistill.teachers.diffusers.prompts import read_prompts
from tests.pipeline_folders import PIPELINES
from tests.unit.test_hostile_files import refused


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("stable_diffusion", "dit", "stable_diffusion_3", "ddpm")
    return {name: PIPELINES[name](tmp_path_factory.mktemp(name)) for name in names}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny pipeline to spoil."""
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def load(name: str, folder: Path) -> Any:
    return getattr(teachers, name)(str(folder), **({} if name in ("dit", "ddpm") else {"prompts": ["a cat"]}))


def without(file: Path, *keys: str) -> None:
    save_file({key: value for key, value in load_file(file).items() if key not in keys}, file, {"format": "pt"})


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "text_encoder_3"])
def test_a_text_encoder_without_some_of_its_weights_is_refused(part: str, copied: Any) -> None:
    folder = copied("stable_diffusion_3")
    file = next((folder / part).glob("*.safetensors"))
    key = next(key for key in sorted(load_file(file)) if "layer" in key or "block" in key)
    without(file, key)
    named = key.rsplit(".", 2)[0].split(".")[-1]
    refused(lambda: load("stable_diffusion_3", folder), f"lack or misshape 1 tensors, first .*{named}")


def test_text_parts_are_of_known_classes(copied: Any) -> None:
    folder = copied("stable_diffusion")
    index = folder / "model_index.json"
    for part, entry in (
        ("text_encoder", ["os", "system"]),
        ("text_encoder", [["a"], {"b": 1}]),
        ("tokenizer", ["transformers", "AutoTokenizer"]),
        ("tokenizer", "CLIPTextModel"),
    ):
        before = index.read_text()
        edit(index, **{part: entry})
        refused(lambda part=part: load("stable_diffusion", folder), f"names .* as its {part}; known: ")
        index.write_text(before)
    edit(index, tokenizer=[None, None])
    refused(lambda: load("stable_diffusion", folder), "model_index.json names no tokenizer")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 100_000}, "a network of over .* modules is declared|would expand to"),
        ({"num_layers": 10**9}, "says num_layers is 1000000000, more than any network has"),
        ({"sample_size": 100_000}, "would expand to"),
        ({"attention_head_dim": 1 << 19}, "would expand to"),
        ({"num_attention_heads": "two"}, "cannot be built|cannot be loaded"),
        ({"num_layers": [[1]]}, "cannot be built|cannot be loaded"),
        ({"_class_name": ["DiTTransformer2DModel"]}, "must say _class_name as a word"),
    ],
)
def test_network_configurations_of_any_size_and_type(changes: dict[str, Any], message: str, copied: Any) -> None:
    folder = copied("dit")
    edit(folder / "transformer" / "config.json", **changes)
    refused(lambda: load("dit", folder), message)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_encoder", {"num_hidden_layers": 100_000}, "modules is declared|would expand to"),
        ("text_encoder", {"vocab_size": 1 << 20, "hidden_size": 1 << 12}, "would expand to"),
        ("text_encoder", {"hidden_size": None}, "cannot be built|cannot be loaded"),
        ("text_encoder", {"vocab_size": 3}, "cannot be loaded|misshape"),
        ("vae", {"block_out_channels": 3}, "must say block_out_channels as a list of numbers"),
    ],
)
def test_other_configurations_of_a_pipeline(part: str, changes: dict[str, Any], message: str, copied: Any) -> None:
    folder = copied("stable_diffusion_3")
    edit(folder / part / "config.json", **changes)
    refused(lambda: load("stable_diffusion_3", folder).decoder and teachers_pixels(folder), message)


def teachers_pixels(folder: Path) -> int:
    from solverdistill.teachers.diffusers.source import Source

    return Source(str(folder), ("vae",), "transformer", ("SD3Transformer2DModel",)).pixels


def test_configurations_that_are_no_objects(copied: Any) -> None:
    folder = copied("ddpm")
    for text in ("[1, 2]", "3", '"a"', "[" * 3000, "\ufeff{}"):
        (folder / "unet" / "config.json").write_text(text, encoding="utf-8")
        refused(lambda: load("ddpm", folder), "must hold a JSON object|is not JSON that can be used")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train_timesteps": 10**9}, "num_train_timesteps is 1000000000, which is not between 1 and 100000"),
        ({"num_train_timesteps": "many"}, "must say num_train_timesteps as an integer, not 'many'"),
        ({"prediction_type": ["epsilon"]}, "must say prediction_type as a word"),
        ({"beta_start": -1.0}, "betas of the scheduler go from -1 to"),
        ({"beta_end": "large"}, "must say beta_end as a number"),
        ({"beta_schedule": {"a": 1}}, "must say beta_schedule as a word"),
        ({"trained_betas": 3}, "must say trained_betas as a list of numbers"),
        ({"trained_betas": [0.1, "b"]}, r"must say trained_betas\[1\] as a number"),
        ({"trained_betas": [0.5, 1.5], "num_train_timesteps": 2}, "lie between 0 and 1"),
        ({"rescale_betas_zero_snr": "yes"}, "must say rescale_betas_zero_snr as true or false"),
    ],
)
def test_schedules_say_anything(changes: dict[str, Any], message: str, folders: Any, tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    shutil.copy(folders["stable_diffusion"] / "scheduler" / "scheduler_config.json", path)
    edit(path, **changes)
    program = build("heun", [2.0, 0.5, 0.1]).program()
    refused(lambda: scheduler_config(program, path), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shift": 0}, "shifts its times by 0"),
        ({"shift": -3.0}, "shifts its times by -3"),
        ({"use_dynamic_shifting": True, "max_image_seq_len": 256}, "shifts its times by nan"),
        ({"use_dynamic_shifting": True, "max_shift": 1e5}, "shifts its times by"),
        ({"shift": "much"}, "must say shift as a number"),
    ],
)
def test_flow_schedules_say_anything(changes: dict[str, Any], message: str, copied: Any) -> None:
    folder = copied("stable_diffusion_3")
    edit(folder / "scheduler" / "scheduler_config.json", **changes)
    refused(lambda: load("stable_diffusion_3", folder), message)


@pytest.mark.parametrize(
    "shards", [3, [1], {"00000000": 3}, {"00000000": {"bytes": "many", "sha256": 4}}, {"00000000": {}}, "deep"]
)
def test_manifests_say_anything(shards: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fill() -> ShardCache:
        cache = ShardCache(tmp_path, "test", {"teacher": "none"}, 2)
        cache.fill([0, 1], lambda shard: {"x": torch.full((2, 1), float(shard))})
        return cache

    cache = fill()
    manifest = cache.folder / "manifest.json"
    size, text = cache.size(), json.dumps({**json.loads(manifest.read_text()), "shards": shards})
    manifest.write_text(text.replace('"deep"', "[" * 5000 + "]" * 5000))
    assert cache.missing([0, 1]) == [0, 1] and cache.size() == 0
    with caplog.at_level(logging.WARNING):
        assert fill().size() == size
    assert "manifest.json is damaged; its shards are made again" in caplog.text
    torch.testing.assert_close(cache.take(torch.arange(4), ["x"])["x"], torch.tensor([[0.0], [0.0], [1.0], [1.0]]))


def test_prompts_in_files_of_every_editor(tmp_path: Path) -> None:
    path, long = tmp_path / "prompts.csv", "a cat " * 40_000
    path.write_text(f'id,prompt\n1,"{long}"\n2,ein B\u00e4r\n', encoding="utf-8-sig")
    assert read_prompts(str(path)) == [long.strip(), "ein B\u00e4r"]
    path.write_text("prompt,id\nrain,1\n", encoding="utf-8-sig")
    assert read_prompts(str(path)) == ["rain"]
    for name in ("prompts.csv", "prompts.txt"):
        (tmp_path / name).write_text("prompt\nrain\nein B\u00e4r\n", encoding="latin-1")
        refused(
            lambda name=name: read_prompts(str(tmp_path / name)),
            r"line 3 of .* is not UTF-8 \(byte 0xe4\); save the file as UTF-8",
        )
    path.write_text("number\n1\n")
    refused(lambda: read_prompts(str(path)), "has no column named prompt, caption, text; it has: number")
