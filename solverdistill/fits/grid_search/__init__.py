"""Search of a student's grid without gradients."""
