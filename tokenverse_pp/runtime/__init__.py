"""Decode with an exported model (`tokenverse-pp export`): onnxruntime, NumPy and sentencepiece, and no torch.

    from tokenverse_pp.runtime import Runtime

    runtime = Runtime("exported")
    print(runtime.transcribe("call.wav", tasks=["asr", "scd"]).text)

`StreamingRuntime` opens what was exported with ``--streaming``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenverse_pp.onnx.folder import Description, read_folder
from tokenverse_pp.onnx.runtime import Runtime

if TYPE_CHECKING:
    from tokenverse_pp.onnx.streaming_runtime import StreamingRuntime

__all__ = ["Description", "Runtime", "StreamingRuntime", "read_folder"]


def __getattr__(name: str) -> Any:
    if name == "StreamingRuntime":
        from tokenverse_pp.onnx.streaming_runtime import StreamingRuntime

        return StreamingRuntime
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
