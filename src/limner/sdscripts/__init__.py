"""Drive a checkout of kohya's sd-scripts: translate a config for it, start it, watch it, keep what it writes. No torch."""
