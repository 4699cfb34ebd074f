"""The command line: one small file a command; none imports torch before it has to."""
