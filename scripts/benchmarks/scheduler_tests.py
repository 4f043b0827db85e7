"""The common tests that diffusers runs on its own schedulers, run on `LearnedSolverScheduler`.

They lie in the repository of diffusers and not in its package, so a checkout is named:

    git clone https://github.com/huggingface/diffusers
    python scripts/benchmark.py scheduler-tests diffusers

Every case has to pass, or to stand in `INAPPLICABLE` with the reason why it cannot; one that passes although it stands
there is a mistake as well. Printed are all cases, for networks of three kinds.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import unittest
import warnings
from pathlib import Path
from typing import Any

from diffusers.utils import logging as diffusers_logging

from solverdistill import Grid, families
from solverdistill.consumers.diffusers import LearnedSolverScheduler

STEPS = 10
KINDS = {
    "epsilon": ("edm", Grid(steps=STEPS, start=40.0, end=0.03), {"beta_schedule": "scaled_linear"}),
    "v_prediction": (
        "edm",
        Grid(steps=STEPS, start=40.0, end=0.03),
        {"beta_schedule": "linear", "prediction_type": "v_prediction"},
    ),
    "flow_prediction": (
        "flow",
        Grid("flow_shift", STEPS, 1.0, 0.03),
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    ),
}
INAPPLICABLE = {
    ("flow_prediction", "test_trained_betas"): "a flow network was trained on no betas, and its scheduler has none",
}


def run(arguments: argparse.Namespace) -> None:
    """Run the cases for a network of every kind and say what came out.

    Raises:
        ValueError: the folder is no checkout of diffusers, or a case fails or passes against what is written here.
    """
    if not (Path(arguments.checkout) / "tests/schedulers/test_schedulers.py").is_file():
        raise ValueError(f"{arguments.checkout} is no checkout of diffusers: it has no tests/schedulers")
    diffusers_logging.set_verbosity_error()
    sys.path.insert(0, str(Path(arguments.checkout).resolve()))
    common = importlib.import_module("tests.schedulers.test_schedulers").SchedulerCommonTest
    surprises = 0
    for kind in KINDS:
        loaded = unittest.defaultTestLoader.loadTestsFromTestCase(make_case(common, kind))
        outcome = unittest.TestResult()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded.run(outcome)
        failed = {test.id().rsplit(".", 1)[1]: trace for test, trace in [*outcome.failures, *outcome.errors]}
        for name in sorted(unittest.defaultTestLoader.getTestCaseNames(common)):
            expected, came = INAPPLICABLE.get((kind, name)), failed.get(name)
            surprises += (expected is None) != (came is None)
            verdict = "passes" if came is None else "fails"
            print(f"{kind:16} {name:40} {verdict}{f': {expected}' if expected else ''}")
            if came is not None and expected is None:
                print(came)
    if surprises:
        raise ValueError(f"{surprises} cases came out as nobody expected; they stand above")


def make_case(common: type, kind: str) -> type:
    """The class of tests for one kind of network."""
    path, grid, network = KINDS[kind]

    def get_scheduler_config(self: Any, **changed: Any) -> dict[str, Any]:
        family = families.build("dpmpp", grid, path)
        made = LearnedSolverScheduler.from_solver(family.program(family.init(0)).detach(), network)
        usual = {name: value.default for name, value in inspect.signature(LearnedSolverScheduler).parameters.items()}
        own = {key: made.config[key] for key, default in usual.items() if made.config[key] != default}
        return {**own, **changed}

    members = {
        "scheduler_classes": (LearnedSolverScheduler,),
        "forward_default_kwargs": (("num_inference_steps", STEPS),),
        "default_num_inference_steps": STEPS,
        "get_scheduler_config": get_scheduler_config,
    }
    return type(f"{kind}Case", (common,), members)
