"""Making token data sets: the shards, in this process or on a Ray cluster."""
