"""From checked rows to token arrays: templates, tokenisation, truncation, storage, cache."""
