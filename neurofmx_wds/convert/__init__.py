"""From recordings and arrays to shards: sources, plan, run."""
