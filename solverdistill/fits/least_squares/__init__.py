"""Every row of the table from a small linear problem."""
