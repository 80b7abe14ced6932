"""Faults of the data side; importing this enters all of them."""

from benchmarks.silent_faults import faults_text  # noqa: F401
