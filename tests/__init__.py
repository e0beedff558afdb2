"""The course's tests; `python -m tests.run` runs all that this machine can."""
