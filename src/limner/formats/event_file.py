"""TensorBoard's event files: records of protocol buffers, each with its checksums.

Framed here, since tensorboard's own writer imports a second and more of what a trainer never uses, and writes from a
thread whose errors come late. Format: tensorflow/core/lib/io/record_writer.h; checksum: RFC 3720, appendix B.4.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.types_pb2 import DT_FLOAT  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo  # pyright: ignore[reportAttributeAccessIssue]

_VERSION = "brain.Event:2"


def _table() -> list[int]:
    out = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        out.append(value)
    return out


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum of `data`."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def record(data: bytes) -> bytes:
    """`data` framed: its length, the length's masked checksum, itself, its own masked checksum."""

    def masked(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


class EventFile:
    """One event file, being written. Every record is in the file when its call returns, or OSError is raised."""

    def __init__(self, folder: Path, purge_from: int | None = None) -> None:
        """Begin a new file in `folder`. What earlier files there tell of steps from `purge_from` on counts no more."""
        folder.mkdir(parents=True, exist_ok=True)
        # files are read in the order of their names
        self._file = (folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}").open("xb", buffering=0)
        self._write(Event(file_version=_VERSION))
        if purge_from is not None:
            self._write(Event(step=purge_from, session_log=SessionLog(status=SessionLog.START)))

    def close(self) -> None:
        self._file.close()

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        self._summary(step, *(Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()))

    def picture(self, step: int, tag: str, path: Path, description: str) -> None:
        """Add an image file as it is."""
        with Image.open(path) as image:
            width, height = image.size
        content = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        self._summary(step, Summary.Value(tag=tag, image=content, metadata=SummaryMetadata(summary_description=description)))

    def hyperparameters(self, values: Mapping[str, bool | float | str], name: str) -> None:
        """Tell what the run was asked to do, for the page that compares runs."""
        info = SessionStartInfo(group_name=name, start_time_secs=time.time())
        for key, value in values.items():
            if isinstance(value, bool):
                info.hparams[key].bool_value = value
            elif isinstance(value, str):
                info.hparams[key].string_value = value
            else:
                info.hparams[key].number_value = value
        content = HParamsPluginData(session_start_info=info).SerializeToString()
        nothing = TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=0)]))
        plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content)
        tag = "_hparams_/session_start_info"
        self._summary(0, Summary.Value(tag=tag, tensor=nothing, metadata=SummaryMetadata(plugin_data=plugin)))

    def _summary(self, step: int, *values: Summary.Value) -> None:
        self._write(Event(step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        whole = record(event.SerializeToString())
        written = self._file.write(whole)
        if written != len(whole):
            raise OSError(28, "only a part could be written", str(self._file.name))
