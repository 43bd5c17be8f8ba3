"""What tools/benchmark.py measures, one module a suite.

A suite has `Options`, `run(options)` that yields a row after each measurement, and
`table(report)` that makes Markdown of the rows. A suite that `RESUMES` takes the rows that are
done as the second argument of `run`. `report` writes, reads and prints them.
"""

SUITES = (
    "simulation",
    "reading",
    "training",
    "serving",
    "information_limit",
    "out_of_distribution",
)
