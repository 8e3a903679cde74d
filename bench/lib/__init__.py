"""What all benchmarks share: the machine, the programs under test, the load, rounds, and tables."""
