"""Samples of others: folders, tar files and parquet files become shards of training samples."""
