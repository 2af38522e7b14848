"""What Django's own tests are run with: settings, and our backend with the tests that it skips."""
