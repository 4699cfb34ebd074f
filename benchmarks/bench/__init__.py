"""The same work on posttrain's side and on TRL's, and what each technique gives on its own: ``make bench``."""
