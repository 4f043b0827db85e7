"""The nodes of this folder."""

from __future__ import annotations

from .description import Input, Node, Output
from .distilling import distil
from .loading import BATCHES, CONVENTIONS, check_file, choices, digest_of, load

SAMPLER = Output("sampler", "SAMPLER", "For SamplerCustom or SamplerCustomAdvanced, together with its sigmas")
SIGMAS = Output("sigmas", "SIGMAS", "The noise levels that the solver was fitted to; it plays no others")
MORE = "Another prompt; every sample of the fit draws one of those connected"

LOAD = Node(
    "LoadLearnedSolver",
    "Load learned solver",
    "Loads a solver.json: use sampler and sigmas together, at the guidance it was fitted to.",
    load,
    (
        Input("file", "COMBO", "A file of models/solvers, or a solver of the zoo", None, choices),
        Input(
            "model",
            "COMBO",
            "What the MODEL predicts, for files that do not say what they were fitted to",
            "from file",
            lambda: list(CONVENTIONS),
        ),
        Input(
            "parallel",
            "COMBO",
            "Evaluations that do not depend on each other: auto takes one batch, one after the other saves memory",
            "auto",
            lambda: list(BATCHES),
        ),
        Input(
            "denoise",
            "FLOAT",
            "Below 1 for image to image: the share of the steps to take, the last ones",
            1.0,
            limits=(0.01, 1.0, 0.01),
            optional=True,
        ),
        Input("for_model", "MODEL", "The MODEL to sample with: checked now instead of when it samples", optional=True),
    ),
    (SAMPLER, SIGMAS, Output("about", "STRING", "Costs of the solver, and what it was fitted to")),
    check_file,
    digest_of,
)

DISTIL = Node(
    "DistilSolver",
    "Distil solver",
    "Fits a solver to this MODEL with its LoRAs, prompts, cfg and size, saves it in models/solvers and hands it on.",
    distil,
    (
        Input("model", "MODEL", "The MODEL to sample with, after its LoRAs"),
        Input("positive", "CONDITIONING", "A prompt of the kind that the solver is for"),
        Input("negative", "CONDITIONING", "The negative prompt"),
        Input("latent_image", "LATENT", "An empty latent of the size that the solver is for; its batch does not count"),
        Input("cfg", "FLOAT", "Guidance scale that the solver is for", 7.0, limits=(0.0, 100.0, 0.1)),
        Input("nfe", "INT", "Evaluations of the network per image of the solver", 6, limits=(1, 50, 1)),
        Input(
            "budget",
            "INT",
            "Evaluations that distilling takes, about, and at least some 160 times nfe; an image of 20 steps takes 20",
            2000,
            limits=(500, 1000000, 100),
        ),
        Input("seed", "INT", "Seed of the noise", 0, limits=(0, 2**32 - 1, 1)),
        Input(
            "batch", "INT", "Images per call of the network; more are faster where memory allows", 1, limits=(1, 64, 1)
        ),
        Input("save_as", "STRING", "Name of the file in models/solvers; a number is added", "distilled"),
        Input(
            "gradients",
            "BOOLEAN",
            "Take derivatives of the network too: nearer to its images, for more memory; not every network can",
            False,
            optional=True,
        ),
        *(Input(f"positive_{i}", "CONDITIONING", MORE, optional=True) for i in (2, 3, 4)),
    ),
    (
        SAMPLER,
        SIGMAS,
        Output("file", "STRING", "Name of the file in models/solvers"),
        Output("about", "STRING", "Costs of the solver, its error on held-out noise, and what fitting it took"),
    ),
    ends=True,
)

NODES = (LOAD, DISTIL)
