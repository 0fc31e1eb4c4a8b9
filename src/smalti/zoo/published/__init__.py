"""Published models: checkpoints of other projects, read into ours. A family is one file."""
