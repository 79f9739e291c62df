"""The folders of the package: which there are, what each may import, and that no class name is used twice."""

import ast
import importlib
import json
import subprocess
import sys
from collections import defaultdict
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
from scripts import ROOT

from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding import recognizer, scorer
from tokenverse_pp.losses import devices
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.encoders import base
from tokenverse_pp.moved import MODULES
from tokenverse_pp.moved import PACKAGE as PACKAGE_NAME

PACKAGE = ROOT / "tokenverse_pp"
FOLDERS = (
    *("base", "metrics", "tasks", "data", "losses", "models", "decoding"),
    *("evaluation", "training", "api", "onnx", "serving", "cli"),
)
TOP = {"__init__", "moved"}  # files of the package itself
ALIASES = {"runtime"}  # `tokenverse_pp.runtime` is the public name of `tokenverse_pp.onnx`
DATA = {"pretrained"}


@cache
def modules():
    """Path and tree of every file, parsed once."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return tuple((path.relative_to(PACKAGE), ast.parse(path.read_text(encoding="utf-8"))) for path in paths)


def imports(tree):
    """Modules of the package that a file imports, at its top, in functions and for annotations."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tokenverse_pp":
            yield from ([f"tokenverse_pp.{a.name}" for a in node.names] if "." not in node.module else [node.module])
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("tokenverse_pp."))


def test_the_folders_of_the_package():
    folders = {path.parts[0] for path, _ in modules() if len(path.parts) > 1} | DATA
    assert folders == {*FOLDERS, *ALIASES, *DATA}
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP


def test_a_folder_imports_only_from_earlier_ones():
    wrong = []
    for path, tree in modules():
        folder = path.parts[0]
        if folder not in FOLDERS:
            continue
        for module in imports(tree):
            other = module.split(".")[1]
            if other in FOLDERS and FOLDERS.index(other) > FOLDERS.index(folder):
                wrong.append(f"{path} imports {module}")
            elif other in ALIASES or other in TOP - {"__init__"}:
                wrong.append(f"{path} imports {module}, which is for users")
    assert not wrong


def test_nothing_imports_recipes():
    names = {path.stem for path in (ROOT / "recipes").rglob("*.py")} - {"__init__"}
    names |= {path.name for path in (ROOT / "recipes").iterdir() if path.is_dir()} | {"recipes", "corpus", "grid"}
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for module in [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]:
                    assert module.split(".")[0] not in names or module.split(".")[0] == "tokenverse_pp", (path, module)


def test_base_needs_no_torch():
    for path, tree in modules():
        if path.parts[0] in ("base", "metrics"):
            for node in ast.walk(tree):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not any(name.split(".")[0] in ("torch", "transformers", "lhotse") for name in names), path


def test_no_class_name_is_used_twice():
    found = defaultdict(list)
    for path, tree in modules():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_old_module_names_work_and_warn():
    wrong = []
    for name, new in MODULES.items():
        with pytest.warns(DeprecationWarning, match=f"{PACKAGE_NAME}.{name} moved") if new else nullcontext():
            old = importlib.reload(importlib.import_module(f"{PACKAGE_NAME}.{name}"))
        for other in new:
            there = importlib.import_module(f"{PACKAGE_NAME}.{other}")
            public = next(
                (key for key, value in vars(there).items() if getattr(value, "__module__", "") == there.__name__), None
            )
            if public is not None and getattr(old, public) is None:
                wrong.append((name, public))
    assert not wrong
    assert importlib.import_module("tokenverse_pp.search").SearchOptions is SearchOptions
    assert importlib.import_module("tokenverse_pp.training.setup").Loaded is ModelBundle
    split = importlib.import_module("tokenverse_pp.decoding.search")
    assert (split.search, split.ConstraintTable) == (recognizer.search, scorer.ConstraintTable)
    split = importlib.import_module("tokenverse_pp.models.compat")
    assert (split.autocast, split.transformer_layer) == (devices.autocast, base.transformer_layer)
    with pytest.raises(ImportError):
        from tokenverse_pp.search import no_such_name  # noqa: F401


def test_files_hold_a_concept():
    sizes = {path: len((PACKAGE / path).read_text(encoding="utf-8").splitlines()) for path, _ in modules()}
    assert {str(path): lines for path, lines in sizes.items() if lines > 600} == {}
    assert isinstance(next(iter(sizes)), Path)


@pytest.mark.slow
def test_a_step_and_a_decoded_batch_go_through_few_files():
    script = ROOT / "benchmarks" / "files_touched.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    counts = json.loads(done.stdout)["counts"]
    assert counts["training_step"] <= 20 and counts["decoded_batch"] <= 15
