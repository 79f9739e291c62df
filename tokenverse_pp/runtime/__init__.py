"""Decode with an exported model (`tokenverse-pp export`): onnxruntime, NumPy and sentencepiece, and no torch.

    from tokenverse_pp.runtime import Runtime

    runtime = Runtime("exported")
    print(runtime.transcribe("call.wav", tasks=["asr", "scd"]).text)

`StreamingRuntime` opens what was exported with ``--streaming``.
"""

from tokenverse_pp.onnx.folder import Description, read_folder
from tokenverse_pp.onnx.runtime import Runtime, StreamingRuntime

__all__ = ["Description", "Runtime", "StreamingRuntime", "read_folder"]
