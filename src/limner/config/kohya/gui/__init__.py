"""Files of kohya_ss's GUI: one module for each part of its form, and `form` that accounts for every key."""

from limner.config.kohya.gui.importer import read, recognise

__all__ = ["read", "recognise"]
