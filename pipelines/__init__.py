"""The commands: ``python -m pipelines.fuse`` and its siblings."""
