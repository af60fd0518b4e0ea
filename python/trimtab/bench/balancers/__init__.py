"""The balancers of the benchmark, one small module a program."""
