"""Gets the Debian packages that hold the recordings, checks them, and unpacks only what is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from tokenverse_pp.base.errors import UserError

ASTERISK_LANGUAGES = ("en", "es", "fr", "it", "ru")
FILLETS_LANGUAGES = ("cs", "nl")

ENGLISH_PACKAGES = {"queen": "flight-of-the-amazon-queen", "sky": "beneath-a-steel-sky"}
"""Package by corpus."""

LICENCES = {
    "asterisk": "CC-BY-SA-3.0 (ru: CC-BY-3.0)",
    "fillets": "GPL-2",
    "queen": "Flight-of-the-Amazon-Queen-License (free to share and to modify, not to be sold by itself)",
    "sky": "Beneath-a-Steel-Sky-License (free to share and to modify, not to be sold by itself)",
    "tuxpaint": "GPL-2",
}

_NEEDED_SUFFIXES = (".g722", ".ogg", ".lua", ".txt", ".txt.gz", ".1c", ".dnr", ".dsk")


def package_names() -> List[str]:
    """Names of all packages of the corpus; all are architecture-independent."""
    names = []
    for language in ASTERISK_LANGUAGES:
        names += [f"asterisk-core-sounds-{language}-g722", f"asterisk-core-sounds-{language}"]
    names += ["fillets-ng-data"] + [f"fillets-ng-data-{language}" for language in FILLETS_LANGUAGES]
    return names + ["tuxpaint-stamps-default"]


def find_packages(names: List[str], folder: Path) -> Dict[str, Path]:
    """The `.deb` file of each name in `folder` (the last by file name if there are several); names without one are
    left out."""
    found = {}
    for name in names:
        files = sorted(folder.glob(f"{name}_*.deb"))
        if files:
            found[name] = files[-1]
    return found


def get_packages(names: List[str], download_dir: Path, packages_dir: Optional[Path] = None) -> Dict[str, Path]:
    """Package files by name: from `packages_dir` if given, else from `download_dir`, filled by `apt-get download`.

    Raises:
        UserError: a package is missing from `packages_dir`, or apt-get is not there or fails.
    """
    if packages_dir is not None:
        found = find_packages(names, Path(packages_dir))
        missing = [name for name in names if name not in found]
        if missing:
            raise UserError(f"--packages-dir {packages_dir}: no .deb file of {', '.join(missing)}")
        return found
    download_dir.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if name not in find_packages(names, download_dir)]
    if missing:
        _download(missing, download_dir)
    found = find_packages(names, download_dir)
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"apt-get download left no .deb file of {', '.join(missing)} in {download_dir}")
    return found


def _download(names: List[str], folder: Path) -> None:
    if shutil.which("apt-get") is None:
        raise UserError(
            "apt-get is not on this machine: fetch the Debian packages elsewhere and pass their folder "
            "as --packages-dir"
        )
    # Downloaded aside, so that a broken download never looks like a package.
    aside = folder / ".partial"
    aside.mkdir(exist_ok=True)
    done = subprocess.run(["apt-get", "download", *names], cwd=aside, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"apt-get download failed ({last}): run `apt-get update` as root, or pass --packages-dir")
    for file in sorted(aside.glob("*.deb")):
        os.replace(file, folder / file.name)
    shutil.rmtree(aside)


def check_package(name: str, path: Path) -> Tuple[str, str]:
    """Returns `(version, licence file inside the package)` of a whole, readable package.

    Raises:
        UserError: dpkg-deb cannot read the file, or it is another package.
    """
    if shutil.which("dpkg-deb") is None:
        raise UserError("dpkg-deb is not on this machine: install the `dpkg` package")
    fields = subprocess.run(
        ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(path)], capture_output=True, text=True
    )
    if fields.returncode != 0 or len(fields.stdout.split()) != 2:
        raise _broken(path)
    package, version = fields.stdout.split()
    if package != name:
        raise UserError(f"{path}: holds package {package}, expected {name}")
    return version, f"usr/share/doc/{name}/copyright"


def extract_package(path: Path, folder: Path) -> None:
    """Unpacks sounds, texts, scripts, game data and licences (no images) of a package into `folder`, which appears
    only when complete.

    Raises:
        UserError: the package is truncated or damaged.
    """
    if folder.is_dir():
        return
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    process = subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                _extract_member(archive, member, aside)
        # dpkg-deb notices a truncated file only at its end, so read to it before asking for the exit code.
        process.stdout.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _broken(path) from error
    finally:
        process.stdout.close()
        code = process.wait()
    if code != 0:
        raise _broken(path)
    os.replace(aside, folder)


def _extract_member(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    wanted = parts and (parts[-1].endswith(_NEEDED_SUFFIXES) or parts[-1] == "copyright")
    if not member.isfile() or not wanted or ".." in parts:
        return
    source = archive.extractfile(member)
    assert source is not None
    target = folder.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as sink:
        shutil.copyfileobj(source, sink)


def _broken(path: Path) -> UserError:
    return UserError(f"{path}: not a whole Debian package (truncated download?): delete it and get it again")
