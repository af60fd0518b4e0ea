"""High availability: several policy servers that share one lease, one state and one lineage."""
