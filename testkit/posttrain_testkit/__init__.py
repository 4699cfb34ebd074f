"""The conformance kit: required properties of methods, as checks that any author can run.

``posttrain check NAME`` runs it from the command line. Under pytest nothing has to be called: beside a plugin's package
``posttrain_testkit.pytest_plugin`` collects the checks and golden entries, and offers fixtures for numbers worked by
hand.
"""

from posttrain_testkit.registry import Check, CheckFailed
from posttrain_testkit.report import Result, checks_for, run_check
from posttrain_testkit.subject import Subject, subject_of

__all__ = ["Check", "CheckFailed", "Result", "Subject", "checks_for", "run_check", "subject_of"]
