"""Commands in the documents: where they stand, and which options there are (pytest puts this folder on the path)."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Dict, FrozenSet, Iterator, List, Mapping, Optional, Set, Tuple

import click
from scripts import ROOT, load_script

from tokenverse_pp.cli.main import cli
from tokenverse_pp.config.reading import make_parser

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*/*.md"), *ROOT.glob("recipes/*/*/README.md")]
)
BLOCK = re.compile(r"^```\w*[^\n]*\n(.*?)^```|((?:^    .*\n(?:\n(?=    ))?)+)", flags=re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
PROGRAM = re.compile(r"(?:\S+/)?(tokenverse-pp|torchrun|make|pip)$|(?:recipes|benchmarks)/[a-z0-9_/]+\.(?:py|sh)$")
SEPARATORS = {"|", "||", "&&", ";", "&"}
LAUNCHERS = {"python", "python3", "torchrun"}


@dataclass(frozen=True)
class Command:
    """One program call: where it stands, the program and its words."""

    document: str
    words: Tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {' '.join(self.words)}"


def commands_of(document: Path) -> Iterator[Command]:
    """Every call of a program of ours in the blocks and the inline code of a document."""
    text = document.read_text(encoding="utf-8").expandtabs(4)
    name = str(document.relative_to(ROOT))
    blocks = [fenced or indented for fenced, indented in BLOCK.findall(text)]
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines += INLINE.findall(re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    for line in lines:
        for words in split_line(line):
            yield Command(name, words)


def split_line(line: str) -> Iterator[Tuple[str, ...]]:
    """The calls in a line of shell, each from its program on; lines that are no shell give none."""
    lexer = shlex.shlex(re.sub(r"\s#.*$", "", " " + line), posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:  # an apostrophe in prose
        return
    call: List[str] = []
    for word in [*words, ";"]:
        if word in SEPARATORS:
            found = program_of(call)
            if found:
                yield found
            call = []
        else:
            call.append(word)


def program_of(words: List[str]) -> Optional[Tuple[str, ...]]:
    """Without settings of the environment and launchers; None if the first word is no program of ours."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words and words[0] in LAUNCHERS:
        scripts = [i for i, word in enumerate(words) if re.match(r"(recipes|benchmarks)/\S+\.py$", word)]
        if scripts:
            words = words[scripts[0] :]
        elif words[1:3] == ["-m", "tokenverse_pp.runtime"]:
            words = words[2:]
        else:
            return None
    if not words or not (PROGRAM.match(words[0]) or words[0] == "tokenverse_pp.runtime"):
        return None
    return tuple(words) if words[0] != "torchrun" else None


@cache
def options_of_click(path: Tuple[str, ...]) -> Optional[Mapping[str, Tuple[str, ...]]]:
    """Option -> its choices (none: anything) of a command of ``tokenverse-pp``; None if there is no such command."""
    command: click.Command = cli
    for name in path:
        found = command.get_command(click.Context(command), name) if isinstance(command, click.Group) else None
        if found is None:
            return None
        command = found
    return options_of(command)


def options_of(command: click.Command) -> Dict[str, Tuple[str, ...]]:
    """Option -> its choices, of a click command."""
    options: Dict[str, Tuple[str, ...]] = {"--help": (), "-h": ()}
    for parameter in command.params:
        choices = tuple(map(str, parameter.type.choices)) if isinstance(parameter.type, click.Choice) else ()
        options.update((name, choices) for name in [*parameter.opts, *parameter.secondary_opts] if name[0] == "-")
    return options


@cache
def options_of_script(script: str) -> Mapping[str, Tuple[str, ...]]:
    """Options of a script of recipes/ or benchmarks/."""
    if script == "recipes/train.py":
        return dict.fromkeys([name for a in make_parser()._actions for name in a.option_strings], ())
    if script == "recipes/decode.py":
        return options_of(load_script(ROOT / script, "decode_of_documents").main)
    # Read, not run: what others import can be slow, or missing.
    text = (ROOT / script).read_text(encoding="utf-8")
    for neighbour in re.findall(r"^(?:from|import) (\w+)", text, flags=re.M):
        file = (ROOT / script).parent / f"{neighbour}.py"
        text += file.read_text(encoding="utf-8") if file.is_file() else ""
    return dict.fromkeys([*re.findall(r"[\"'/](--?[a-z][\w-]*)", text), "--help"], ())


@cache
def all_options() -> FrozenSet[str]:
    """Every option of every program here."""
    found: Set[str] = set()

    def walk(command: click.Command) -> None:
        found.update(options_of(command))
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                walk(command.get_command(click.Context(command), name))

    walk(cli)
    for pattern in ("recipes/*.py", "recipes/*/*.py", "recipes/*/*/*.py", "benchmarks/*.py"):
        for path in ROOT.glob(pattern):
            found.update(options_of_script(str(path.relative_to(ROOT))))
    found.update(options_of_script("tokenverse_pp/runtime/__main__.py"))
    return frozenset(found)
