"""Sequences in, log-probs out: packing, attention, the chunked head."""
