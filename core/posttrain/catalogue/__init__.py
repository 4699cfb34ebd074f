"""Which methods are installed or known, and what their cards say; none is imported to find out."""
