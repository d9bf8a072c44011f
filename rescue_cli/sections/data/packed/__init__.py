"""Images inside shards: tar, zip and parquet files that are read in place."""
