"""Silent Faults: trainings of seconds that go wrong without an error, after public issues.

    python -m benchmarks.silent_faults              # all, into results/silent_faults.csv
    python -m benchmarks.silent_faults loss eval    # those whose name has one of these words

`faults_*.py` hold the faults, `healthy.py` the correct set-ups that must stay quiet.
"""
