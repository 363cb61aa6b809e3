"""What kohya_ss and sd-scripts write, read into Limner's options and back. Its names live here and in the schema's metadata."""
