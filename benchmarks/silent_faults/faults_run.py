"""The faults of the run: importing this enters them all."""

from benchmarks.silent_faults import faults_learned, faults_loss, faults_preference  # noqa: F401
