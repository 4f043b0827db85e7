"""Published weights: cards, downloads, loading."""
