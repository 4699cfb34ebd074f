"""What a person sees of a run: in a terminal, in a file, in a notebook, and of runs that go on elsewhere."""
