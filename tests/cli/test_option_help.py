"""Every option of every command has a help text."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional, Tuple

import click
import pytest
from click.testing import CliRunner
from scripts import ROOT, load_script

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.config_files import make_parser
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import nested_option_help
from tokenverse_pp.cli.main import cli
from tokenverse_pp.cli.options import NamedNumber, chosen, options_from

FEWEST_WORDS = 3
SCRIPTS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "recipes").rglob("*.py")
    if "@click.option" in path.read_text(encoding="utf-8")
)


def options_without_help(command, name):
    """``command --option`` of each option with less than a few words of help, in a group and all that is in it."""
    for option in command.params:
        if isinstance(option, click.Option) and len((option.help or "").split()) < FEWEST_WORDS:
            yield f"{name} {option.opts[0]}"
    if isinstance(command, click.Group):
        context = click.Context(command)
        for part in command.list_commands(context):
            yield from options_without_help(command.get_command(context, part), f"{name} {part}")


def test_options_of_the_command_line_have_help():
    assert not list(options_without_help(cli, "tokenverse-pp"))


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_options_of_recipes_have_help(path):
    try:
        script = load_script(ROOT / path, f"helped_{path.stem}")
    except ImportError as error:
        pytest.skip(f"needs an optional package: {error}")
    commands = [value for value in vars(script).values() if isinstance(value, click.Command)]
    assert commands
    assert not [name for command in commands for name in options_without_help(command, str(path))]


def test_options_of_training_have_help():
    actions = {action.dest: action for action in make_parser()._actions}
    assert not [name for name, action in actions.items() if len((action.help or "").split()) < FEWEST_WORDS]
    described = nested_option_help(Config())
    assert described["model.loss.prune_range"] == "Symbols kept for each frame by the pruned loss."
    assert all(actions[name].help.replace("%%", "%") == text for name, text in described.items())
    text = " ".join(make_parser().format_help().split())
    assert all(" ".join(described[name].split()[:6]) in text for name in ("data.train", "optim.lr", "training.resume"))


@dataclass
class TeaOptions:
    """Options of a command."""

    milk: bool = False
    """whether there is milk in it."""
    kind: Literal["black", "green"] = "black"
    """Kind of the tea, which
    decides the temperature."""
    minutes: Optional[float] = None
    """Minutes that it steeps."""
    hot: bool = True
    """Serve it while it is hot."""
    cups: int = 1
    """Number of cups."""
    spices: Tuple[str, ...] = ()
    """What else is in it."""
    leaves: Optional[Path] = None
    """File of leaves."""


@click.command()
@options_from(TeaOptions, minutes={"option": "--steep"}, cups={"default": None, "type": click.IntRange(1)})
def tea(**given):
    click.echo(repr(chosen(TeaOptions, given, cups=given["cups"] or 7)))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], TeaOptions(cups=7)),
        (["--milk", "--kind=green", "--steep=2", "--no-hot", "--cups=3"], TeaOptions(True, "green", 2.0, False, 3)),
        (
            ["--spices", "mint", "--spices", "ginger", "--leaves=x.tea"],
            TeaOptions(cups=7, spices=("mint", "ginger"), leaves=Path("x.tea")),
        ),
    ],
)
def test_options_from_a_dataclass(words, options):
    assert CliRunner().invoke(tea, words).output == f"{options!r}\n"


@pytest.mark.parametrize("words", [["--kind=red"], ["--steep=soon"], ["--minutes=2"], ["--cups=0"]])
def test_options_from_a_dataclass_check_values(words):
    assert CliRunner().invoke(tea, words).exit_code == 2


def test_help_from_a_dataclass():
    text = " ".join(CliRunner().invoke(tea, ["--help"]).output.split())
    assert "--milk Whether there is milk in it. --kind" in text
    assert "Kind of the tea, which decides the temperature. [default: black] --steep" in text
    assert "--hot / --no-hot Serve it while it is hot. [default: hot]" in text
    assert "Number of cups. [default: 1]" in text
    with pytest.raises(ValueError, match="sugar"):
        options_from(TeaOptions, "milk", sugar={})


def test_help_does_not_import_torch():
    lines = ["import sys", "from tokenverse_pp.cli import model, serve, transcribe", "print('torch' in sys.modules)"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_named_numbers_are_read_and_refused():
    kind = NamedNumber("TOKEN=NUMBER", "[SCD]=0.7")
    assert kind.convert("[SCD]=-1", None, None) == ("[SCD]", -1.0)
    assert kind.convert("==2", None, None) == ("=", 2.0)
    for bad in ("[SCD]", "[SCD]=", "[SCD]=loud", "[SCD]=inf", "[SCD]=nan", "=1"):
        with pytest.raises(UserError, match=r"expected TOKEN=NUMBER such as \[SCD\]=0.7"):
            kind.convert(bad, None, None)
