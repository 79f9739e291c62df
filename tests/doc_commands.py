"""Commands in the documents: where they stand, and which options there are (pytest puts this folder on the path)."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Dict, FrozenSet, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

import click
from scripts import ROOT, load_script

from tokenverse_pp.base.config_files import make_parser
from tokenverse_pp.cli.main import cli

DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("recipes/*/*.md"),
        *ROOT.glob("recipes/*/*/README.md"),
        *ROOT.glob("recipes/**/*.yaml"),
        *ROOT.glob("recipes/**/*.sh"),
        *ROOT.glob("recipes/**/*.py"),
        *ROOT.glob("benchmarks/*.py"),
        *ROOT.glob(".ci/*.sh"),
    ]
)
BLOCK = re.compile(r"^```\w*[^\n]*\n(.*?)^```|((?:^    [^\n]*\n(?:\n(?=    ))?)+)", flags=re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
PROGRAM = re.compile(r"(?:\S+/)?(tokenverse-pp|make|pip)$|(?:recipes|benchmarks)/[a-z0-9_/]+\.(?:py|sh)$")
MENTION = re.compile(r"tokenverse|recipes/|benchmarks/|make|pip")
# How a line begins that is a command.
PROGRAM_LINE = re.compile(r"(?:[A-Z_]+=\S+ )*(?:tokenverse-pp|make|pip|git|python3?|torchrun|ffmpeg) ")
SEPARATORS = {"|", "||", "&&", ";", "&"}
LAUNCHERS = {"python", "python3", "torchrun"}
KEYWORDS = {"do", "then", "else", "{", "(", "!", "exec", "time", "if", "while"}
ASSIGNMENT = re.compile(r"(?:^|(?<=[;\s]))([A-Za-z_]\w*)=(\([^)]*\)|\"[^\"]*\"|'[^']*'|[^\s;]*)(?=\s*(?:$|[;#]|\s#))")
ARRAY = re.compile(r"\"?\$\{(\w+)\[@\]\}\"?")
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?([-=?])([^}]*))?\})")
OTHERS = re.compile(r"\"?\$(?:@|\*|\{[^}]*\})\"?")  # all arguments, and what only bash can tell


@dataclass(frozen=True)
class Command:
    """One program call: where it stands, the program and its words.

    Args:
        whole: all words are there, so that a parser takes it; False where a text only names it.
    """

    document: str
    words: Tuple[str, ...]
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.document}: {' '.join(self.words)}"


@cache
def commands_of(document: Path) -> Tuple[Command, ...]:
    """Every call of a program of ours in the blocks and the inline code of a document.

    Of YAML files the comments are read, of Python files the docstring of the module, of shell scripts all.
    """
    text = document.read_text(encoding="utf-8").expandtabs(4)
    name = str(document.relative_to(ROOT))
    blocks, inline = blocks_of(text, document.suffix)
    calls = [words for block in blocks for line in expanded(block) for words in split_line(line)]
    mentions = [words for line in inline for words in split_line(line)]
    whole = [Command(name, words, is_whole(words)) for words in calls]
    return (*whole, *(Command(name, words) for words in mentions))


def blocks_of(text: str, suffix: str) -> Tuple[List[str], List[str]]:
    """The blocks of shell of a document, and its inline code."""
    if suffix == ".sh":
        return [re.sub(r"^#.*\n", "", text, flags=re.M)], []
    if suffix == ".py":
        text = ast.get_docstring(ast.parse(text), clean=True) or ""
        # A paragraph after \b is one that click leaves as it is.
        text = re.sub(r"^\x08\n((?:.+\n?)+)", lambda match: re.sub("^", "    ", match[1], flags=re.M), text, flags=re.M)
        suffix = ".md"
    if suffix == ".yaml":
        text = "\n".join(re.findall(r"^\s*#\s?(.*)$", text, flags=re.M))
        return ["\n".join(line for line in text.splitlines() if line.startswith("  "))], INLINE.findall(text)
    blocks = [fenced or indented for fenced, indented in BLOCK.findall(text if text.endswith("\n") else text + "\n")]
    return blocks, INLINE.findall(re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def expanded(block: str) -> Iterator[str]:
    """The lines of a block of shell, with the variables that it sets (of a loop the first value); others by name."""
    known: Dict[str, str] = {}
    block = re.sub(r"\\\n\s*", " ", block)
    block = re.sub(r"=\([^()]*\)", lambda match: match[0].replace("\n", " "), block)

    def value(match: re.Match[str]) -> str:
        name, sign, default = match[1] or match[2], match[3], match[4]
        return known.get(name, default if sign in ("-", "=") else f"ARG{name}")

    for line in block.splitlines():
        line = ARRAY.sub(lambda match: known.get(match[1], ""), line)
        line = OTHERS.sub("", VARIABLE.sub(value, line))
        loop = re.match(r"\s*for (\w+) in ([^\s;]+)", line)
        if loop:
            known[loop[1]] = loop[2]
        for name, text in ASSIGNMENT.findall(line):
            if text.startswith("("):
                known.setdefault(name, text[1:-1])  # of two arrays the first
            else:
                known[name] = text[1:-1] if text[:1] in ('"', "'") else text
        yield line


def is_whole(words: Sequence[str]) -> bool:
    """Whether a call has all its words: none is left out, by dots."""
    return not any(word.strip("[]") in ("...", "..", "…") for word in words)


def split_line(line: str) -> Iterator[Tuple[str, ...]]:
    """The calls in a line of shell, each from its program on; lines that are no shell give none."""
    if not MENTION.search(line):
        return
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
                yield tuple(without_redirections(found))
            call = []
        else:
            call.append(word)


def without_redirections(words: Sequence[str]) -> Iterator[str]:
    """The words but for ``> FILE``, and without the brackets of ``[--option]``."""
    skip = False
    for word in words:
        if skip or re.match(r"\d?[<>]", word):
            skip = not skip and bool(re.fullmatch(r"\d?[<>]+", word))
        elif word.startswith("[--"):
            yield word[1:].rstrip("]")
        else:
            yield word[:-1] if word.endswith("]") and "[" not in word else word


def program_of(words: List[str]) -> Optional[Tuple[str, ...]]:
    """Without settings of the environment and launchers; None if the first word is no program of ours."""
    while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] in KEYWORDS):
        words = words[1:]
    if words and words[0].rsplit("/")[-1] in LAUNCHERS:
        scripts = [i for i, word in enumerate(words) if re.match(r"(recipes|benchmarks)/\S+\.py$", word)]
        if scripts:
            words = words[scripts[0] :]
        elif words[1:3] == ["-m", "tokenverse_pp.runtime"]:
            words = words[2:]
        else:
            return None
    if not words or not (PROGRAM.match(words[0]) or words[0] == "tokenverse_pp.runtime"):
        return None
    return tuple(words)


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
    if command.context_settings.get("ignore_unknown_options"):  # takes those of training too
        options.update(options_of_script("recipes/train.py"))
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
def help_commands() -> Tuple[Command, ...]:
    """The examples in the help texts of ``tokenverse-pp`` and its commands; ``manifest ..`` stands for one of it."""
    found: List[Command] = []

    def walk(command: click.Command, path: str) -> None:
        text = re.sub(r"^(\s*)(?=manifest [a-z-]+ )", r"\1tokenverse-pp ", command.help or "", flags=re.M)
        lines = [line for line in expanded(text) if re.match(r"\s*(tokenverse-pp|python|torchrun) ", line)]
        calls = [words for line in lines for words in split_line(line)]
        found.extend(Command(f"{path} --help", words, is_whole(words)) for words in calls)
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                walk(command.get_command(click.Context(command), name), f"{path} {name}")

    walk(cli, "tokenverse-pp")
    return tuple(found)


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
