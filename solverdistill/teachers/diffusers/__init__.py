"""Teachers from folders of diffusers pipelines: Stable Diffusion 1.x, 2.x, XL and 3, FLUX, DiT, PixArt, DDPM.

One function per kind, named by `_target_` in configs/model, and `pipeline` for any pipeline as it is. The former share
these settings:

* `weights`: the pipeline's folder as `save_pretrained` writes it, or a hub id ("owner/name", "owner/name@revision").
* `name`: name of the teacher in files and tables.
* `latent_size`: height and width of the latents, one number or [height, width]; null for the network's own.
* `prompts`, `negative_prompt`: a text file, a CSV or a list; null for a short list of captions of the package's own.
* `prediction`: overrides the scheduler's prediction type ("eps", "v", "denoised").
* `noise_range`: [largest, smallest] noise level, in the path's own unit; null for all that were trained.
* `weights_dtype`: dtype in which the weights are kept; half precision needs the same `running.dtype`.
* `variant`: variant of the weight files, such as "fp16".
* `decoder_tile`: size of the decoder's tiles in latent pixels; null decodes whole samples.
* `running`: how the network is run, see `solverdistill.teachers.running.Running`.

The libraries diffusers and transformers are needed only to load: ``pip install 'solverdistill[diffusers]'``.
"""

from solverdistill.teachers.diffusers.loading import ddpm, dit, flux, pixart, stable_diffusion, stable_diffusion_3
from solverdistill.teachers.diffusers.pipelines.loading import pipeline

__all__ = ["ddpm", "dit", "flux", "pipeline", "pixart", "stable_diffusion", "stable_diffusion_3"]
