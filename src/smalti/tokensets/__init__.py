"""Makes token data sets, shard by shard, in this process or on a Ray cluster."""
