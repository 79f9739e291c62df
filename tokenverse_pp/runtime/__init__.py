"""Decode with an exported model (`tokenverse-pp export`): onnxruntime, NumPy and sentencepiece, and no torch.

    from tokenverse_pp.runtime import Runtime

    runtime = Runtime("exported")
    print(runtime.transcribe("call.wav", tasks=["asr", "scd"]).text)

`StreamingRuntime` opens what was exported with ``--streaming``; `from_sherpa` reads what sherpa-onnx wrote with an
export for it.
"""

from tokenverse_pp.onnx import from_sherpa
from tokenverse_pp.onnx.folder import Description, read_folder
from tokenverse_pp.onnx.runtime import Runtime, StreamingRuntime

__all__ = ["Description", "Runtime", "StreamingRuntime", "from_sherpa", "read_folder"]
