"""What the server of forked processes has ready: all imports, and CLIP's tokenizer."""

import gc

import limner.adapters.layered
import limner.cli
import limner.engine.examine
import limner.engine.prepare
import limner.engine.train
import limner.models.sd1
import limner.runner
import limner.tool_jobs
import limner.tools.using
import limner.web.app
import limner.web.server  # noqa: F401
from limner.models.text import END, clip_tokenizer

clip_tokenizer(END)
gc.collect()
gc.freeze()  # a trainer collects what it has left behind; looking through all this each time would take longest
