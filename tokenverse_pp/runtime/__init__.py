"""Decode with an exported model (`tokenverse-pp export`), using onnxruntime, NumPy and sentencepiece, not torch.

    from tokenverse_pp.runtime import Runtime

    runtime = Runtime("exported")
    print(runtime.transcribe("call.wav", tasks=["asr", "scd"]).text)

`StreamingRuntime` opens models exported with ``--streaming``; `from_sherpa` reads what sherpa-onnx wrote with an export
for it.
"""

from tokenverse_pp.onnx import from_sherpa
from tokenverse_pp.onnx.folder import Description, read_folder
from tokenverse_pp.onnx.runtime import Runtime, StreamingRuntime

__all__ = ["Description", "Runtime", "StreamingRuntime", "from_sherpa", "read_folder"]
