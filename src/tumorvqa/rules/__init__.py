"""Thresholds with their sources: one TOML file is one rule pack."""
