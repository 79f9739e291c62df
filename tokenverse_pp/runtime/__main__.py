"""``python -m tokenverse_pp.runtime FOLDER AUDIO...``: transcribe files with an exported model, without torch."""

from __future__ import annotations

import argparse
import json
import sys
from typing import List, Optional

from tokenverse_pp.api.formats import FORMATS
from tokenverse_pp.base.errors import UserError, printable
from tokenverse_pp.base.options import SearchOptions, tasks_named
from tokenverse_pp.onnx.folder import read_folder
from tokenverse_pp.onnx.runtime import Runtime, StreamingRuntime
from tokenverse_pp.tasks import load_plugins

EXIT_CODE = 2
STDIN = "-"
SHOWN = [name for name in FORMATS if name not in ("raw", "html")]  # text is raw here, html needs jinja2


def main(arguments: Optional[List[str]] = None) -> int:
    """Print the transcript of each file; one that cannot be decoded gives a line on stderr and exit code 2."""
    args = _parser().parse_args(arguments)
    form = FORMATS[args.format]
    try:
        if form.joined is None and len(args.audio) > 1:
            raise UserError(f"--format {args.format}: expected one audio file, got {len(args.audio)}")
        load_plugins(args.plugin)
        is_offline = read_folder(args.folder, check_files=False).streaming is None
        runtime = (Runtime if is_offline else StreamingRuntime)(args.folder, args.threads)
        runtime.inactive = args.inactive or runtime.inactive
        tasks = tasks_named(args.tasks, "--tasks")
        options = SearchOptions(args.method, args.beam)
    except UserError as error:
        return _refuse(error)
    code = 0
    for path in args.audio:
        audio, name = (sys.stdin.buffer.read(), "stdin") if path == STDIN else (path, None)
        try:
            transcript = runtime.transcribe(audio, tasks, args.language, options, name)
        except UserError as error:
            reason, label = str(error), name or path
            code = _refuse(error if label in reason else UserError(f"{label}: {reason}"))
            continue
        if args.format == "text":
            said = transcript.raw + "\n"
        elif args.format == "json":
            said = json.dumps({"path": path, **transcript.to_dict()}, ensure_ascii=False) + "\n"
        else:
            said = (form.joined or form.write)(transcript)
        if sys.stdout.isatty():
            said = "".join(printable(line) + "\n" for line in said.splitlines())
        print(said, end="", flush=True)
    return code


def _refuse(error: UserError) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return EXIT_CODE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tokenverse_pp.runtime", description=__doc__)
    parser.add_argument("folder", help="what `tokenverse-pp export` wrote")
    parser.add_argument("audio", nargs="+", help="audio files; - for one on standard input")
    parser.add_argument("--tasks", help="names with commas, such as asr,lid [all of the model's]")
    about = "tasks not requested: suppressed, or decoded with the others and stripped [as the model was trained]"
    parser.add_argument("--inactive", choices=["suppress", "strip"], help=about)
    parser.add_argument("--language", help="code of the language that is spoken, if known")
    parser.add_argument("--method", choices=["greedy", "beam"], default="beam", help="how to search [beam]")
    parser.add_argument("--beam", type=int, default=4, help="hypotheses kept [4]")
    parser.add_argument("--format", choices=SHOWN, default="text", help="text: with task tokens [text]")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="Python file with tasks of your own; repeatable"
    )
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime [1]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
