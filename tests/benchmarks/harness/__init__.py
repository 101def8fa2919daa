"""What the benchmarks have in common: pairs and their statistics, running, reporting, live servers and their load."""
