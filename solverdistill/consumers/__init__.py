"""Play a solver file inside other libraries."""
