"""Backends to try a balancer on: a small social network, and emulated servers."""
