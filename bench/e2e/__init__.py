"""The eight benchmarks of the whole product beside their limits."""
