"""Clips in tar shards: their order, how they are read, and the LightningDataModule over them."""
