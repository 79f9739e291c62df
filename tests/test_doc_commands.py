"""No document names a command, option, configuration key, extra or make target that is not there."""

import re

import pytest
from doc_commands import (
    BLOCK,
    DOCUMENTS,
    INLINE,
    all_options,
    commands_of,
    options_of_click,
    options_of_script,
    split_line,
)
from scripts import ROOT

# Options of programs that are not ours, as documents name them by themselves.
FOREIGN = {
    "--logdir",
    "--nproc-per-node",
    "--nnodes",
    "--rdzv-backend",
    "--rdzv-endpoint",
    "--max-restarts",
    "--mic",
    "--no-deps",
}
CONFIG_KEY = re.compile(r"(?<![\w./-])((?:data|tasks|tokenizer|model|optim|training)(?:\.[a-z_]+)+)(?![\w./(*<{])")
FILE_TYPES = (".safetensors", ".yaml", ".json", ".model", ".md", ".py", ".onnx", ".jsonl", ".bin", ".png")


def each_document():
    return pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def problem(command):
    """What is wrong with a command of a document, or None."""
    program, *words = command.words
    if program.endswith("tokenverse-pp"):
        return problem_of_click(words)
    if program == "make":
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
        return next(
            (f"make {word}" for word in words if re.fullmatch(r"[a-z0-9-]+", word) and word not in targets), None
        )
    if program == "pip":
        extras = re.findall(r"tokenverse_pp\[([\w,-]+)\]|(?:^|\s)\.\[([\w,-]+)\]", " ".join(words))
        named = [extra for pair in extras for extra in "".join(pair).split(",")]
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        return next((f"extra {e}" for e in named if not re.search(rf"^{e} = \[", project, flags=re.M)), None)
    if program == "tokenverse_pp.runtime":
        program = "tokenverse_pp/runtime/__main__.py"
    if not (ROOT / program).is_file():
        return f"no file {program}"
    if program.endswith(".sh"):
        return None
    return wrong_option(options_of_script(program), words)


def problem_of_click(words):
    """Of a command of `tokenverse-pp`: its name and the options behind it."""
    path = ()
    while words:
        if words[0] == "--plugin":
            words = words[2:]
        elif re.fullmatch(r"[a-z][a-z0-9-]*", words[0]) and options_of_click((*path, words[0])) is not None:
            path, words = (*path, words[0]), words[1:]
        else:
            break
    if not path and words and re.fullmatch(r"[a-z-]+", words[0]) and not words[0].startswith("--"):
        return f"no command {words[0]}"
    if path in (("manifest",), ("manifest", "prepare")) and words and re.fullmatch(r"[a-z-]+", words[0]):
        return f"no command {' '.join(path)} {words[0]}"
    return wrong_option(options_of_click(path), words)


def wrong_option(options, words):
    """The first option that the program lacks, or value that is none of its choices."""
    for word, value in zip(words, [*words[1:], ""]):
        name, _, given = word.lstrip("[").rstrip("],.").partition("=")
        if not re.match(r"--?[a-z]", name):
            continue
        if name not in options:
            return f"no option {name}"
        value = given or value.rstrip("],.")
        if options[name] and value and re.fullmatch(r"[a-z_0-9]+", value) and value not in options[name]:
            return f"{name} {value}: expected one of {', '.join(options[name])}"
    return None


@each_document()
def test_commands_and_their_options_exist(document):
    wrong = {str(command): problem(command) for command in commands_of(document)}
    assert {command: said for command, said in wrong.items() if said} == {}


@each_document()
def test_options_named_in_the_text_exist(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    named = {name for code in INLINE.findall(text) for name in re.findall(r"(?:^|[\s(])(--[a-z][\w.-]*)", code)}
    assert named - all_options() - FOREIGN - {"--section.key"} == set()


@each_document()
def test_configuration_keys_exist(document):
    known = {option.lstrip("-") for option in options_of_script("recipes/train.py")}
    sections = {key.rsplit(".", n)[0] for key in known for n in (1, 2) if key.count(".") >= n}
    text = document.read_text(encoding="utf-8")
    code = [*INLINE.findall(text), *("".join(groups) for groups in BLOCK.findall(text))]
    named = {key for piece in code for key in CONFIG_KEY.findall(piece) if not key.endswith(FILE_TYPES)}
    assert {key for key in named if key not in known | sections} == set()


def test_there_are_commands_of_every_kind():
    found = [command.words for document in DOCUMENTS for command in commands_of(document)]
    programs = {words[0] for words in found}
    assert {
        "tokenverse-pp",
        "recipes/train.py",
        "recipes/decode.py",
        "make",
        "pip",
        "tokenverse_pp.runtime",
    } <= programs
    assert len(found) > 100


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tokenverse-pp transcribe a.wav --tasks asr", None),
        ("X=1 tokenverse-pp transcribe a.wav --taks asr", "no option --taks"),
        ("ffmpeg -i a -f wav - | tokenverse-pp transcribe - --format mp3", "--format mp3: expected one of text"),
        ("tokenverse-pp transcibe a.wav", "no command transcibe"),
        ("tokenverse-pp manifest prepare amy A B", "no command manifest prepare amy"),
        ("torchrun --nproc-per-node 2 recipes/train.py --training.max_step 3", "no option --training.max_step"),
        ("python recipes/decode.py --model M --beems 3", "no option --beems"),
        ("make venv && make demos", "make demos"),
        ("pip install 'tokenverse_pp[served]'", "extra served"),
        ("pip install '.[human-speech,dock]'", "extra dock"),
        ("python recipes/nobody/train.py", "no file recipes/nobody/train.py"),
    ],
)
def test_what_is_wrong_is_seen(line, said):
    from doc_commands import Command

    found = [problem(Command("here", words)) for words in split_line(line)]
    assert [f for f in found if f] == [] if said is None else any(f and f.startswith(said) for f in found)
