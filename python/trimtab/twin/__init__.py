"""The digital twin: a simulator of peers, classes and the balancing rule."""
