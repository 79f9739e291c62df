"""Every option of every command has a help text."""

import click
import pytest
from scripts import ROOT, load_script

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.config_files import make_parser
from tokenverse_pp.base.option_help import nested_option_help
from tokenverse_pp.cli.main import cli

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
