"""The benchmark: balancers on the same seeded load and work, and what came of it."""
