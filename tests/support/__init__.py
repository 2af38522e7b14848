"""What the tests stand on: servers, a proxy, clocks, ways to wait."""
