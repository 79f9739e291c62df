"""What is released: the wheel holds all of the package and runs outside the checkout; names and versions agree."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from command_lines import run, run_ok
from scripts import ROOT
from tiny_models import write_model, write_speech
from toy_runs import environment

import tokenverse_pp
from tokenverse_pp import Transcript

TOY_MODEL = ROOT / "tests" / "oracles" / "fixtures" / "toy_model"
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PAPERS = ["2508.19856", "2407.04444", "2407.04439"]
# Run where only the wheel's package can be imported: every module, every command's help, every kind of file it opens.
INSPECTION = """
import importlib, importlib.resources, pkgutil, sys
import click
import tokenverse_pp
from tokenverse_pp.cli.main import cli

assert tokenverse_pp.__file__.startswith(sys.argv[1]), tokenverse_pp.__file__
for module in pkgutil.walk_packages(tokenverse_pp.__path__, "tokenverse_pp."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

def walk(command, context):
    print(context.command_path)
    assert command.get_help(context).startswith("Usage: ")
    for name in command.list_commands(context) if isinstance(command, click.Group) else ():
        child = command.get_command(context, name)
        walk(child, click.Context(child, info_name=name, parent=context))

walk(cli, click.Context(cli, info_name="tokenverse-pp"))

from tokenverse_pp.api.folders import DEFAULT, locate_model
from tokenverse_pp.evaluation.report.tables import asset, environment
from tokenverse_pp.serving.http import PAGE

model = {file.name for file in locate_model(DEFAULT).iterdir()}
assert model >= {"config.yaml", "model.safetensors", "tokenizer.model", "calibration.json"}
assert all((PAGE / name).is_file() for name in ("page.html", "page.js", "page.css", "audio.js", "capture.js"))
templates = environment().list_templates(filter_func=lambda name: name.endswith(".html.j2"))
assert {name.rsplit("/")[-1] for name in templates} >= {"page.html.j2", "report.html.j2", "transcript.html.j2"}
assert all(environment().get_template(name) for name in templates)
assert all(asset(f"evaluation/report/{name}") for name in ("page.js", "page.css"))
"""


def known_files():
    """Files that git knows, and new ones that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("not a checkout")
    return sorted({name for name in found.stdout.splitlines() if (ROOT / name).is_file()})


def package_data():
    """The patterns of pyproject.toml, which Python 3.9 cannot read as TOML."""
    (found,) = re.findall(r"^tokenverse_pp = \[\n(.*?)^\]", PROJECT, flags=re.M | re.S)
    return re.findall(r'"(.*?)"', found)


def test_the_version_is_said_in_one_place():
    assert re.search(r'^dynamic = \["version"\]$', PROJECT, flags=re.M)
    assert re.search(r'^version = \{ attr = "tokenverse_pp.__version__" \}$', PROJECT, flags=re.M)
    places = [name for name in known_files() if name.endswith(".py") and name.startswith("tokenverse_pp/")]
    said = [name for name in places if re.search(r"^__version__ = ", (ROOT / name).read_text("utf-8"), flags=re.M)]
    assert said == ["tokenverse_pp/__init__.py"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", tokenverse_pp.__version__)


def test_package_data_names_every_file_that_is_not_code():
    patterns = package_data()
    others = [name for name in known_files() if name.startswith("tokenverse_pp/") and not name.endswith(".py")]
    left_out = [name for name in others if not any(Path(name).match(f"tokenverse_pp/{p}") for p in patterns)]
    assert others and left_out == []


@pytest.mark.parametrize("pattern", package_data())
def test_every_pattern_of_package_data_finds_something(pattern):
    assert any((ROOT / "tokenverse_pp").glob(pattern))


def test_older_pythons_get_the_extras_that_the_manual_promises():
    table = PROJECT.split("[project.optional-dependencies]")[1].split("[project.")[0]
    older = (ROOT / ".ci" / "venv.sh").read_text(encoding="utf-8").split("Python older than 3.11")[1]
    lists = re.findall(r"'\.\[(.+)\]'|for extra in (.+);", older)
    given = {name for one, other in lists for name in re.split("[ ,]", one or other)}
    assert given == {*re.findall(r"^([\w-]+) = \[", table, re.M)} - {"baselines", "endpoints"}


def test_the_citation_names_the_three_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert [paper["url"].rsplit("/", 1)[1] for paper in citation["references"]] == PAPERS
    for paper in citation["references"]:  # what the format (1.2.0) asks of a reference
        assert paper["authors"] and paper["title"] and paper["type"] == "conference-paper"
        assert all({"name"} == set(a) or {"family-names", "given-names"} == set(a) for a in paper["authors"])


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Folder with a wheel made from a source distribution, made from a copy of the files that git knows."""
    source = tmp_path_factory.mktemp("source")
    for name in known_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    dist = source / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(dist.iterdir())) == 2
    return dist


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(release):
    (wheel,) = release.glob(f"tokenverse_pp-{tokenverse_pp.__version__}-py3-none-any.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {name for name in known_files() if name.startswith("tokenverse_pp/")}


@pytest.mark.slow
def test_the_source_distribution_holds_what_git_knows(release):
    (archive,) = release.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        files = {member.name.split("/", 1)[1] for member in tar.getmembers() if member.isfile()}
    hidden = {".gitignore", ".pre-commit-config.yaml"}  # of use in a checkout only
    assert set(known_files()) - files == hidden & set(known_files())


@pytest.mark.slow
def test_the_wheel_runs_outside_the_checkout(release, tiny_corpus, tmp_path):
    (wheel,) = release.glob("*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    surroundings = {**environment(), "PYTHONPATH": str(site), "TOKENVERSE_PP_CACHE": str(tmp_path / "cache")}

    def outside(*command):
        done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    script = site / "bin" / "tokenverse-pp"
    assert os.access(script, os.X_OK)
    assert outside(str(script), "--version").split()[-1] == tokenverse_pp.__version__
    model = write_model(tiny_corpus, tmp_path / "model")
    write_speech(tiny_corpus, tmp_path, "one")
    words = ("transcribe", "--model", str(model), "--method", "greedy", str(tmp_path / "one.wav"))
    assert outside(str(script), *words) == run(*words).stdout
    assert "languages: " in outside(str(script), "transcribe", "--list-tasks")
    commands = outside(sys.executable, "-c", INSPECTION, str(site)).splitlines()
    assert {"tokenverse-pp transcribe", "tokenverse-pp manifest prepare ami", "tokenverse-pp export"} <= set(commands)


@pytest.mark.slow
def test_an_export_runs_in_a_bare_environment_by_the_commands_of_its_readme(release, tmp_path):
    """Nothing is installed but the wheel and the packages that the README names, from the package registry."""
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name)
    exported = tmp_path / "THIS_FOLDER"
    run_ok("export", TOY_MODEL, "--output-dir", exported)
    samples = np.random.default_rng(0).normal(0, 0.1, 3 * 16000).astype(np.float32)
    soundfile.write(tmp_path / "recording.wav", samples, 16000, subtype="FLOAT")
    (wheel,) = release.glob("*.whl")
    shutil.copy(wheel, tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "bare"], check=True, capture_output=True)
    path = f"{tmp_path / 'bare' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    surroundings = {**os.environ, "PATH": path, "PYTHONPATH": "", "PYTHONNOUSERSITE": "1"}

    def bare(*command):
        done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", (exported / "README.md").read_text(encoding="utf-8"), flags=re.M)
    command, script, install = (textwrap.dedent(block).strip() for block in blocks)
    bare("bash", "-c", install)
    assert "torch" not in bare("pip", "list")
    with_torch = run("transcribe", tmp_path / "recording.wav", "--model", TOY_MODEL, "--format", "json")
    expected = Transcript.from_json(with_torch.stdout)
    assert expected.words
    assert bare("bash", "-c", command) == expected.raw + "\n"
    assert bare("python", "-c", script) == expected.text + "\n"
