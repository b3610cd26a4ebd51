"""Arrays between ranks: collectives on the host, resharding plans, and how slices travel."""
