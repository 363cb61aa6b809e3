"""Presets by family and kind, one TOML file each; its first comment line says what it is for. They set only what they must."""
