"""The examples in the docstrings of tokenverse_pp/api (and of the command's view) run as they stand there."""

import doctest
import importlib
import pkgutil

import pytest

import tokenverse_pp.api

MODULES = [
    *(item.name for item in pkgutil.walk_packages(tokenverse_pp.api.__path__, "tokenverse_pp.api.")),
    *(f"tokenverse_pp.{name}" for name in ("cli.transcribing", "data.audio.inputs", "tasks.result")),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, model_folder, speech, tmp_path):
    path, samples = speech
    given = {"folder": model_folder, "audio_file": path, "samples": samples, "new_folder": tmp_path / "new"}
    failed, _ = doctest.testmod(importlib.import_module(name), extraglobs=given, verbose=False)
    assert failed == 0


def test_there_are_examples():
    found = [test for name in MODULES for test in doctest.DocTestFinder().find(importlib.import_module(name))]
    assert sum(len(test.examples) for test in found) > 25
