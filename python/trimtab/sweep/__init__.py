"""Independent jobs, here, over processes, or over machines: the same results in the same order."""
