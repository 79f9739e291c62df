"""What a run says when its device fails."""

import pytest
import torch
from toy_runs import assert_one_line, call, toy_options

from tokenverse_pp.base.config import TrainingConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.losses.devices import is_lost_device, is_out_of_memory
from tokenverse_pp.training import failures
from tokenverse_pp.training.failures import explaining_device_errors

ASSERTED = (
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at some other API "
    "call, so the stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"


def lost(text=ASSERTED):
    """The error of a GPU that has failed, in this version of torch."""
    return getattr(torch, "AcceleratorError", RuntimeError)(text)


def test_what_counts_as_a_lost_device():
    for error in (lost(), RuntimeError(ASSERTED), RuntimeError("Triton Error [CUDA]: an illegal memory access")):
        assert is_lost_device(error) and not is_out_of_memory(error)
    for text in (
        "no kernel image is available",
        "operation not permitted when stream is capturing",
        "invalid argument",
    ):
        assert not is_lost_device(lost(f"CUDA error: {text}"))
    assert not is_lost_device(RuntimeError("shape mismatch")) and not is_lost_device(ValueError("CUDA error: x"))
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(RuntimeError(FULL))
    assert not is_out_of_memory(RuntimeError("shape mismatch")) and not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))


def test_only_errors_of_the_device_are_explained(tmp_path, monkeypatch):
    options = TrainingConfig(exp_dir=str(tmp_path))

    def raised(error):
        with pytest.raises(type(error)) as caught, explaining_device_errors(options):
            raise error
        return caught.value

    for error in (RuntimeError("shape mismatch"), KeyError("a"), UserError("cut a: no such file")):
        assert raised(error) is error
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    error = lost()
    assert raised(error) is error


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(FULL)])
def test_memory_that_the_model_does_not_fit_into_is_one_line(train_script, tiny_corpus, tmp_path, monkeypatch, error):
    def build(*arguments):
        raise error

    monkeypatch.setattr(train_script, "build_model", build)
    failure = call(train_script.main, *toy_options(tiny_corpus, tmp_path / "exp"))
    assert_one_line(failure, "out of memory outside of a batch", "no checkpoint yet", "docs/training.md")


@pytest.mark.parametrize(
    "resume, said", [("auto", "the same command"), (True, "the same command"), (False, "--training.resume auto")]
)
def test_how_to_resume_is_what_works(tmp_path, monkeypatch, resume, said):
    monkeypatch.setattr(failures, "list_checkpoints", lambda folder: [folder / "step-00000004"])
    assert said in failures.rest_of(TrainingConfig(exp_dir=str(tmp_path), resume=resume))


def test_lost_gpu_is_one_line_that_names_the_checkpoint(train_script, tiny_corpus, tmp_path, monkeypatch):
    def run(trainer, stop):
        trainer.progress.step = 4
        trainer.save()
        raise lost()

    monkeypatch.setattr(train_script.Trainer, "run", run)
    failure = call(train_script.main, *toy_options(tiny_corpus, tmp_path / "exp", data__valid=[]))
    said = failure.stderr.splitlines()
    assert failure.code == 2 and [line for line in said if line.startswith("error: ")] == said[-1:]
    for part in ("the GPU has failed (CUDA error: device-side assert triggered)", "step-00000004 is intact", "resumes"):
        assert part in said[-1]
