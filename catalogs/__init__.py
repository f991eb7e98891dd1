"""Catalogs as data: where imagery is found and how its assets are named. One TOML file a catalog."""
