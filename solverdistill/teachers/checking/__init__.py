"""Whether a teacher's settings are right."""
