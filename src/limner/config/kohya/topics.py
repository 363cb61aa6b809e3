"""What arguments are about, in the order in which it is read and written. What is trained, and how fast, goes before."""

from limner.config.kohya import computing, flow, keeping, objective, pictures, plain, saving, scheduling, unused

TOPICS = (scheduling, objective, flow, keeping, computing, pictures, saving, plain, unused)
"""Modules with `read(reader)` and `write(writer)`. `plain` takes what is one to one, `unused` accounts for what is left."""
