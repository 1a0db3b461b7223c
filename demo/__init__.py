"""The embedded model: its tasks, its training, its checkpoint."""
