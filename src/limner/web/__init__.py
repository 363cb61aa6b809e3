"""The page and its server. Gradio asks the environment when it is imported, by whichever of our modules comes first."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing calls out
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
