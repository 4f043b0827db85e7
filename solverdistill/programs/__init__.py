"""A solver as a table: record it, play it, write it to a file."""
