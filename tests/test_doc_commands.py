"""No document names a command, option, configuration key, extra or make target that is not there."""

import re

import pytest
from command_parsers import problem_of_parser
from doc_commands import (
    DOCUMENTS,
    INLINE,
    Command,
    all_options,
    blocks_of,
    commands_of,
    expanded,
    help_commands,
    is_whole,
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
    "--rdzv-conf",
    "--monitor-interval",
    "--shutdown-timeout",
    "--signals-to-handle",
    "--signal",
    "--strict",
    "--mic",
    "--no-deps",
    "--working-dir",
    "--index-url",
    "--force-reinstall",
}
CONFIG_KEY = re.compile(r"(?<![\w./-])((?:data|tasks|tokenizer|model|optim|training)(?:\.[a-z_]+)+)(?![\w./(*<{])")
FILE_TYPES = (".safetensors", ".yaml", ".json", ".model", ".md", ".py", ".onnx", ".jsonl", ".bin", ".png")


def each_document(*suffixes):
    found = [path for path in DOCUMENTS if not suffixes or path.suffix in suffixes]
    return pytest.mark.parametrize("document", found, ids=lambda path: str(path.relative_to(ROOT)))


def problem(command):
    """What is wrong with a command of a document, or None."""
    program, *words = command.words
    if command.whole and program != "make" and program != "pip":
        if program.startswith(("recipes/", "benchmarks/")) and not (ROOT / program).is_file():
            return f"no file {program}"
        return problem_of_parser(program, tuple(words))
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


def test_a_new_environment_gets_the_package_from_its_file():
    """The package is not on PyPI; by its name alone pip finds only what is installed already."""
    by_name = re.compile(r".*(?:--no-deps |venv/bin/pip install )'?tokenverse_pp(?!-).*")
    texts = [path.read_text(encoding="utf-8") for path in (*DOCUMENTS, *ROOT.glob("tokenverse_pp/onnx/*.py"))]
    assert [found for text in texts for found in by_name.findall(text)] == []


def test_commands_in_help_texts_exist():
    assert len(help_commands()) > 10
    wrong = {str(command): problem(command) for command in help_commands()}
    assert {command: said for command, said in wrong.items() if said} == {}


@each_document(".md", ".yaml")
def test_options_named_in_the_text_exist(document):
    blocks, codes = blocks_of(document.read_text(encoding="utf-8"), document.suffix)
    codes += blocks if document.suffix == ".yaml" else []
    named = {name for code in codes for name in re.findall(r"(?:^|[\s(])(--[a-z][\w.-]*)", code)}
    assert named - all_options() - FOREIGN - {"--section.key"} == set()


@each_document(".md", ".yaml")
def test_configuration_keys_exist(document):
    known = {option.lstrip("-") for option in options_of_script("recipes/train.py")}
    sections = {key.rsplit(".", n)[0] for key in known for n in (1, 2) if key.count(".") >= n}
    text = document.read_text(encoding="utf-8")
    code = [*INLINE.findall(text), *blocks_of(text, document.suffix)[0]]
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
    found = [problem(Command("here", words)) for words in split_line(line)]
    assert [f for f in found if f] == [] if said is None else any(f and f.startswith(said) for f in found)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("tokenverse-pp manifest label a.jsonl b.jsonl --add lid", None),
        ("tokenverse-pp manifest label a.jsonl --add lid", "Missing argument 'OUTPUT'"),
        ("tokenverse-pp manifest label a.jsonl b.jsonl c.jsonl", "unexpected extra argument"),
        ("tokenverse-pp manifest subset a b --hours N", None),
        ("tokenverse-pp manifest subset a b --hours many", "'many' is not a valid"),
        ("tokenverse-pp manifest", None),
        ("tokenverse-pp manifest frobnicate", "No such command 'frobnicate'"),
        ("tokenverse-pp transcribe a.wav > out.txt 2> err.txt", None),
        ("tokenverse-pp manifest import o --table T.csv --tasks asr,sing", "--tasks: unknown task 'sing'"),
        ("tokenverse-pp --plugin p.py manifest import o --table T.csv --tasks asr,sing", None),
        ("tokenverse-pp manifest import o --table T.csv --set colour=red", "no such field"),
        ("tokenverse-pp manifest import o --brat b", "nothing to import"),
        ("python recipes/train.py --config recipes/toy/conf/toy.yaml --data.train '[a.jsonl, b.jsonl]'", None),
        ("python recipes/train.py --config recipes/toy/conf/toy.yaml --optim.lr fast", "optim.lr"),
        ("python recipes/train.py --config recipes/toy/conf/toy.yaml --training.max_steps 0", "expected at least 1"),
        ("python recipes/train.py --config recipes/toy/conf/toi.yaml", "no file recipes/toy/conf/toi.yaml"),
        ("python recipes/train.py --config my.yaml --optim.lr fast", "optim.lr"),
        ("python recipes/decode.py --model M --cuts C", "Missing option '--output-dir'"),
        ("python recipes/decode.py --model M ... --beam 3", None),
        ("python benchmarks/hotwords.py --model M", "required: --cuts, --train"),
        ("python -m tokenverse_pp.runtime exported", "required: audio"),
        ("python recipes/human_speech/experiments.py run x --seed 1", "No such option"),
        ("for x in 1 two; do\n  python recipes/decode.py --model M --cuts C --output-dir o$x --beam $x\ndone", None),
        ("n=two\npython recipes/decode.py --model M --cuts C \\\n    --output-dir o --beam $n", "'two' is not a valid"),
        ('c="--beam 3 \\\n  --bim 4"\npython recipes/decode.py --model M --cuts C --output-dir o $c', "No such option"),
        (
            'o=(--beam 3\n  --bim 4)\npython recipes/decode.py --model M --cuts C --output-dir o "${o[@]}"',
            "No such option",
        ),
        ("[ -e x ] || tokenverse-pp manifest label a.jsonl", "Missing argument"),
        ("tokenverse-pp manifest stats ${1:-a.jsonl} --jsn ${x:-y}", "No such option"),
    ],
)
def test_whole_commands_are_parsed(block, said):
    found = [problem(Command("here", words, is_whole(words))) for line in expanded(block) for words in split_line(line)]
    assert len(found) == 1
    assert found[0] is None if said is None else said in (found[0] or "")


def test_commands_in_the_heads_of_files_are_found():
    heads = {
        "recipes/human_speech/conf/whole.yaml": 2,
        "recipes/human_speech/conf/transfer_ner.yaml": 2,
        "recipes/toy/conf/toy.yaml": 2,
        "recipes/human_speech/demo.sh": 9,
        "benchmarks/search.py": 2,
        "recipes/human_speech/baselines/baselines.py": 5,
    }
    for name, count in heads.items():
        assert sum(command.whole for command in commands_of(ROOT / name)) == count, name
    # Every configuration says how it is used, but for those that hold no run.
    for path in ROOT.glob("recipes/*/conf/*.yaml"):
        programs = [command.words[0] for command in commands_of(path)]
        assert "recipes/train.py" in programs or path.name == "from_audio.yaml", path
