"""The league: every method on one family of small tasks, with one budget, scored on held-out problems.

``python -m benchmarks.league`` trains and measures what is not in ``benchmarks/league/results`` yet; ``posttrain sync``
makes ``docs/league.md`` of it.
"""
