"""Pages of the recipes and measurements; links to files that are no pages become their names."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ["recipes/*/*.md", "recipes/*/*/README.md", "benchmarks/results/*.md", "CHANGELOG.md", "CONTRIBUTING.md"]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config) -> Files:
    """Add the documents that stand beside what they describe, under their own paths."""
    for pattern in OUTSIDE:
        for path in sorted(path for path in ROOT.glob(pattern) if not path.parent.is_symlink()):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for path in sorted(ROOT.glob("recipes/*/experiments/*.png")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Turn links between folders into links between pages; of a file that is no page only the name is left."""
    here = page.file.src_uri
    folder = (ROOT / here if (ROOT / here).is_file() else ROOT / "docs" / here).parent

    def relinked(match: re.Match) -> str:
        mark, text, target, anchor = match.groups()
        path = (folder / target).resolve()
        for base in (ROOT / "docs", ROOT):
            if path.is_relative_to(base):
                name = path.relative_to(base).as_posix()
                if files.get_file_from_path(name):
                    return f"{mark}[{text}]({'../' * here.count('/')}{name}{anchor or ''})"
        if not path.exists():
            return match.group(0)  # mkdocs says that it is broken
        name = path.relative_to(ROOT).as_posix()
        return f"`{name}`" if text.strip("`/") in (target, name) else f"{text} (`{name}`)"

    return LINK.sub(relinked, markdown)
