"""A k2 that is there and cannot be used: `auto` falls back to native and says why, `k2` is an error of one line."""

import logging
import sys

import pytest
import torch
from cases import make_case

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.losses import devices, k2_available, pruned_transducer_loss
from tokenverse_pp.losses.entry import resolve_backend
from tokenverse_pp.losses.k2 import load_k2

GPU, CPU = torch.device("cuda"), torch.device("cpu")
# What k2/__init__.py raises, and what has to be said of it.
BROKEN = {
    "library": (
        "raise OSError('libcudart.so.11.0: cannot open shared object file: No such file or directory')",
        "libcudart.so.11.0: cannot open shared object file",
    ),
    "symbol": (
        "raise ImportError('/k2/_k2.so: undefined symbol: _ZN3c104impl8GPUTrace13gpuTraceStateE\\nNote: see the docs')",
        "undefined symbol: _ZN3c104impl8GPUTrace13gpuTraceStateE Note: see the docs",
    ),
    "version": (
        "raise ImportError('k2 was built using PyTorch: 1.13.1\\nBut you are using PyTorch: 2.1.0\\n')",
        "k2 was built using PyTorch: 1.13.1 But you are using PyTorch: 2.1.0",
    ),
    "runtime": ("raise RuntimeError('CUDA driver version is insufficient')", "CUDA driver version is insufficient"),
    "no words": ("raise RuntimeError", "RuntimeError"),
    "its own import": ("import k2_has_no_such_module", "No module named 'k2_has_no_such_module'"),
    "syntax": ("def f(:", "invalid syntax"),
    "attribute": ("import torch; torch.ops.k2.no_such_operator", "no_such_operator"),
    "without CUDA": ("with_cuda = False", "built without CUDA"),
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """``install(source)`` puts a package `k2` with this ``__init__.py`` first on the path."""
    monkeypatch.setitem(devices._problems, "cuda", "no GPU here")  # else Triton would be preferred, or warned of
    for name in [name for name in sys.modules if name.partition(".")[0] == "k2"]:
        monkeypatch.delitem(sys.modules, name)

    def write(source):
        (tmp_path / "k2").mkdir(exist_ok=True)
        (tmp_path / "k2" / "__init__.py").write_text(source + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    yield write
    sys.modules.pop("k2", None)


@pytest.mark.parametrize("kind", BROKEN)
def test_auto_falls_back_and_says_why_once(install, caplog, kind):
    source, reason = BROKEN[kind]
    install(source)
    with caplog.at_level(logging.WARNING):
        assert [resolve_backend("auto", GPU) for _ in range(3)] == ["torch"] * 3
    (record,) = caplog.records
    said = record.getMessage()
    assert reason in said and "using the native loss" in said and "\n" not in said


@pytest.mark.parametrize("kind", BROKEN)
def test_k2_asked_for_is_an_error_of_one_line_with_its_reason(install, kind):
    source, reason = BROKEN[kind]
    install(source)
    assert resolve_backend("k2", GPU) == "k2"
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            load_k2(GPU)
        said = str(caught.value)
        assert reason in said and said.startswith("loss backend 'k2' needs the k2 package") and "\n" not in said


def test_a_broken_k2_costs_a_cpu_nothing(install, caplog):
    install("raise OSError('libcudart.so.11.0')")
    case = make_case(1, batch=1, frames=4, symbols=2)
    arguments = (*case.inputs[:4], case.linear(), case.symbols, case.boundary)
    assert resolve_backend("auto", CPU) == "torch" and not k2_available()
    assert torch.isfinite(pruned_transducer_loss(*arguments).pruned).all() and not caplog.records
    with pytest.raises(UserError, match=r"libcudart\.so\.11\.0"):
        pruned_transducer_loss(*arguments, backend="k2")


def test_a_k2_that_works_is_taken_on_a_gpu(install):
    install("with_cuda = True")
    assert resolve_backend("auto", GPU) == "k2" and resolve_backend("auto", CPU) == "torch"
    assert k2_available() and load_k2(GPU).with_cuda


def test_a_folder_of_that_name_is_no_package(install, tmp_path, monkeypatch, caplog):
    install("")
    (tmp_path / "k2" / "__init__.py").unlink()  # as a checkout of its repository in the working directory
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert resolve_backend("auto", GPU) == "torch" and not k2_available() and not caplog.records
    with pytest.raises(UserError, match="No module named 'k2'"):
        load_k2()
