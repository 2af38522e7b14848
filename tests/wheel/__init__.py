"""What `make dist` asks of a wheel: that it works where nothing else is installed."""
