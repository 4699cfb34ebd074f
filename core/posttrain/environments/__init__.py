"""Tasks that bring rows and their scorer."""
