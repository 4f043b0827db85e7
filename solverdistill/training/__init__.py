"""From a composed configuration to a trained, exported, compared solver."""
