"""Multi-modal neural recordings to WebDataset shards, and from shards to resumable PyTorch training."""
