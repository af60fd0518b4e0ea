"""The open-loop load generator; `docs/load.md` tells how to call it from Python and the shell."""
