"""Published models: checkpoints of other projects, loaded into models of smalti. One file per family."""
