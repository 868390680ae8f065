"""What breaks while requests run, for as long as it takes in earnest. The short versions are in `tests/e2e`."""
