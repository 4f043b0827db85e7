"""A whole pipeline of diffusers as a teacher: one evaluation is one step of its own call.

No pipeline is known here by name. Its call is run for one step, with a scheduler of its own class that hands it the
time and the noise level that are asked for, and that ends the call when the network's output arrives in `step`. So
guidance in whatever form, packed or video latents, image conditions, and experts that take turns need no adapter.
What a pipeline makes of its prompts and images is kept from its first run (`replaying`), a few steps of its own
sampling say what its network is told (`watching`, `convention`), and the same steps check that nothing is left out.
"""
