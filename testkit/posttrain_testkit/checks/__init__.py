"""The checks, by subject. Importing a module registers its checks (``posttrain_testkit.registry``)."""
