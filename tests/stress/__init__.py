"""Long runs of random actions and failures, only by `make stress`."""
