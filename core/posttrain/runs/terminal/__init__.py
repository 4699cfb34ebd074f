"""Display of runs: in a terminal, in a file, in a notebook, and of runs in other processes."""
