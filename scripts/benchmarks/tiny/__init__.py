"""Pipelines of diffusers with tiny random components: `TINY` names all of them."""
