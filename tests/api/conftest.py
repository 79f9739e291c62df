"""A tiny model and a file of speech."""

import pytest
from tiny_models import write_model, write_speech

from tokenverse_pp.api.model import TokenVerse


@pytest.fixture(scope="session")
def model_folder(tiny_corpus, tmp_path_factory):
    return write_model(tiny_corpus, tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def model(model_folder):
    return TokenVerse.from_pretrained(model_folder)


@pytest.fixture(scope="session")
def speech(tiny_corpus, tmp_path_factory):
    """Path and samples."""
    return write_speech(tiny_corpus, tmp_path_factory.mktemp("speech"))
