"""What the server of forked processes has ready: all imports, and CLIP's tokenizer."""

import gc

import accelerate  # noqa: F401
import torch.distributed.fsdp
import torch.distributed.tensor  # noqa: F401

import limner.adapters.layered
import limner.engine.prepare
import limner.engine.train
import limner.models.sd1
import limner.web.app
import limner.web.server  # noqa: F401
from limner.models.text import END, clip_tokenizer

clip_tokenizer(END)
gc.collect()
gc.freeze()  # a trainer collects what it has left behind; looking through all this each time would take longest
