"""The benchmark: every pool beside ours, on one server, in one run. `python -m tests.bench -h`."""
