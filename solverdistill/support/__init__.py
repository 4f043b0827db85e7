"""What every layer may use: files, processes, pickles, checks, messages."""
