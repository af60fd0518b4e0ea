"""The soak: servers, nginx, policy server and a load, with faults at random from a seed.

`make soak` runs it; docs/reliability.md says what it does and what came out.
"""
