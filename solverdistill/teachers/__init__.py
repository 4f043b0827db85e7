"""Teachers: denoisers whose sampling a learned solver speeds up."""
