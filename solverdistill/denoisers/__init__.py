"""One interface for every network, wrappers, guidance."""
