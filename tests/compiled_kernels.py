"""Compile every Triton kernel for a GPU that need not be there, and print what each one uses, as JSON.

Usage: python compiled_kernels.py 90  (the compute capability, times ten)

They run on tensors on the CPU; launches are caught, and what they would compile is compiled for the capability.
Where registers do not suffice, the compiler puts numbers in local memory, which its report tells.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.beam import BeamMemory
from tokenverse_pp.decoding.greedy_kernel import greedy_on_device
from tokenverse_pp.decoding.language_models import LanguageModel
from tokenverse_pp.decoding.ngram import ngrams_of_words
from tokenverse_pp.decoding.ngram_tables import NgramTables
from tokenverse_pp.decoding.scorer import BatchConstraints, Scorer, inference
from tokenverse_pp.decoding.triton_search import Fusion, TritonSearch
from tokenverse_pp.losses import devices, pruned_transducer_loss
from tokenverse_pp.models.encoders.grouped_convolution import grouped_convolution
from tokenverse_pp.models.predictor import StatelessPredictor
from tokenverse_pp.models.transducer import Joiner

TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}
OPTIONS = ("num_warps", "num_stages", "maxnreg")


def signature_of(arguments: dict, constants: dict) -> dict:
    """Triton's names of the argument types."""
    types = {}
    for name, value in arguments.items():
        if name in constants:
            types[name] = "constexpr"
        elif torch.is_tensor(value):
            types[name] = TYPES[value.dtype]
        else:
            types[name] = "i32" if abs(value) < 2**31 else "i64"
    return types


def usage(cubin: bytes) -> dict:
    """Registers and bytes of local memory a thread, by NVIDIA's own tool."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    names = {"registers": "REG", "stack": "STACK", "local": "LOCAL"}
    return {key: int(re.findall(rf"\b{name}:(\d+)", report)[-1]) for key, name in names.items()}


@contextlib.contextmanager
def caught(capability: int, found: dict):
    """Compile instead of launching."""

    def compile_only(self, *args, grid, warmup, **kwargs):
        options = {key: kwargs.pop(key) for key in OPTIONS if key in kwargs}
        arguments = {**dict(zip(self.arg_names, args)), **kwargs}
        constants = {p.name: arguments[p.name] for p in self.params if p.is_constexpr}
        signature = signature_of(arguments, constants)
        name = json.dumps(
            [self.fn.__name__, {k: str(v) for k, v in constants.items()}, options, list(signature.values())]
        )
        if name not in found:
            # As at a launch: what is a multiple of 16 is known to be one, which decides how numbers are loaded.
            specialized = [not p.do_not_specialize for p in self.params]
            attributes = {
                (i,): [["tt.divisibility", 16]]
                for i, (key, kind) in enumerate(signature.items())
                if kind.startswith("*") or (kind != "constexpr" and specialized[i] and arguments[key] % 16 == 0)
            }
            source = ASTSource(fn=self, signature=signature, constexprs=constants, attrs=attributes)
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            found[name] = {
                "kernel": self.fn.__name__,
                "shared": compiled.metadata.shared,
                **usage(compiled.asm["cubin"]),
            }

    original = triton.runtime.JITFunction.run
    triton.runtime.JITFunction.run = compile_only
    try:
        yield
    finally:
        triton.runtime.JITFunction.run = original


def loss(frames: int, symbols: int, vocab: int, dtype: torch.dtype, **options) -> None:
    """Forward and backward of a loss of zeros; what the kernels would have computed is left as it is."""
    joiner = 512
    shapes = ((1, frames, vocab), (1, symbols + 1, vocab), (1, frames, joiner), (1, symbols + 1, joiner))
    inputs = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    layer = torch.nn.Linear(joiner, vocab)
    targets = torch.zeros((1, symbols), dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = pruned_transducer_loss(*inputs, layer, targets, backend="triton", **options)
    (losses.simple.sum() + losses.pruned.sum()).backward()


def search(beam: int, vocab: int, dtype: str) -> None:
    """Both searches of a batch with constraints; that with a beam has hotwords and n-grams."""
    predictor, joiner = StatelessPredictor(vocab, 512), Joiner(512, 512, 512, vocab)
    options = SearchOptions(beam=beam, joiner_dtype=dtype)
    with inference(torch.device("cpu")):
        scorer = Scorer(predictor, joiner, torch.zeros(2, 3, 512), options)
        constraints = BatchConstraints(
            torch.zeros(4, vocab), torch.zeros(4 * vocab, dtype=torch.int64), torch.zeros(3, 1)
        )
        pieces = ["<blk>", *(f"\u2581{i}" for i in range(vocab - 1))]
        words = ngrams_of_words([([i % 7 + 1, i % 11 + 1, i % 13 + 1], 1.0) for i in range(100)], vocab)
        model = LanguageModel({"": (words, True)}, pieces, 0.3, 1.0)
        phrases = torch.zeros(5, vocab), torch.zeros(5, vocab, dtype=torch.int32)
        fusion = Fusion(phrases, NgramTables.of(model, torch.device("cpu")), model.states)
        memory = BeamMemory.start(scorer, 3, beam, constraints)
        memory = memory._replace(state=memory.state.astype("int64"))
        TritonSearch(scorer, [2, 2, 1], memory, constraints, fusion).run().follow(memory.score, vocab)
        greedy_on_device(scorer, [2, 2, 1], memory.context[:, 0], memory.state[:, 0], constraints)


def positions(width: int) -> None:
    """Forward and backward of the positional convolution of wav2vec2, of 16 groups of so many channels."""
    conv = torch.nn.Conv1d(16 * width, 16 * width, 128, padding=64, groups=16)
    x = torch.zeros(1, 200, 16 * width, requires_grad=True)
    grouped_convolution(x, conv, torch.bfloat16).sum().backward()


if __name__ == "__main__":
    devices._problems["cpu"] = None
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    found: dict = {}
    with caught(int(sys.argv[1]), found):
        loss(500, 80, 500, torch.float32)
        loss(300, 600, 5000, torch.float32, rnnt_type="constrained", delay_penalty=0.1, am_scale=0.1)
        loss(3000, 600, 50, torch.float32)
        loss(500, 100, 500, torch.bfloat16, rnnt_type="modified")
        positions(48)
        positions(64)
        search(1, 500, "float32")
        search(4, 500, "bfloat16")
        search(8, 5000, "float32")
    print(json.dumps(list(found.values())))
