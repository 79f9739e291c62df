"""Every miniature corpus, made and prepared once through the command line."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import lhotse.recipes.commonvoice
import pytest
from command_lines import run_ok
from mini_runs import MAKERS, Prepared, lhotse_manifests


@pytest.fixture(scope="session")
def threads_for_commonvoice():
    """lhotse's recipe starts six interpreters, five seconds each; threads run the same function."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            lhotse.recipes.commonvoice, "ProcessPoolExecutor", lambda max_workers, **_: ThreadPoolExecutor(max_workers)
        )
        yield


@pytest.fixture(scope="session")
def corpora(tmp_path_factory, threads_for_commonvoice):
    """name -> Prepared, for every corpus."""
    root = tmp_path_factory.mktemp("corpora")
    prepared = {}
    for name, make in MAKERS.items():
        corpus_dir = make(root / name)
        result = run_ok("manifest", "prepare", name, corpus_dir, root / "out" / name)
        prepared[name] = Prepared(corpus_dir, root / "out" / name, result.stdout)
    return prepared


@pytest.fixture(scope="session")
def lhotse_alone(corpora, tmp_path_factory):
    """name -> {part: {recordings, supervisions}} of lhotse's own recipe, without ours."""
    cache = {}

    def manifests(name):
        if name not in cache:
            cache[name] = lhotse_manifests(name, corpora[name].corpus_dir, tmp_path_factory.mktemp("alone"))
        return cache[name]

    return manifests
