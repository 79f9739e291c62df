"""Make the toy corpus: synthetic speech from numpy alone, labelled for all five tasks.

    python recipes/toy/prepare.py --output-dir data/toy

Writes ``cuts_{train,dev,test}.jsonl.gz``, ``audio/`` and ``encoder/config.json`` (a tiny wav2vec2 without
weights: training starts it at random). The same options give the same corpus, and the same test set whatever
``--train`` is.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Set

import click
import numpy as np
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from toy_speech import LANGUAGES, SAMPLING_RATE, ToyTurn, compose_utterance

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli.groups import report_errors

CORPUS = "toy"
TASKS = ("asr", "scd", "endp", "ner", "lid")
# Test first: what it says is then barred from dev and train, and does not depend on their sizes.
SPLITS = ("test", "dev", "train")

# A small wav2vec2 built as XLSR-53 is: layer norm in convolutions, pre-norm transformer, 320 samples a frame.
# Three wide convolutions instead of seven narrow ones and ReLU, since the first layers cost most on a CPU.
ENCODER = {
    "model_type": "wav2vec2",
    "architectures": ["Wav2Vec2Model"],
    "feat_extract_norm": "layer",
    "feat_extract_activation": "relu",
    "conv_dim": [64, 96, 128],
    "conv_kernel": [80, 8, 8],
    "conv_stride": [20, 4, 4],
    "conv_bias": True,
    "num_conv_pos_embeddings": 64,
    "num_conv_pos_embedding_groups": 8,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "do_stable_layer_norm": True,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}


def prepare_toy(
    output_dir: Path, sizes: Mapping[str, int], seed: int = 0, label_share: Optional[Mapping[str, float]] = None
) -> Dict[str, CutSet]:
    """Write the corpus below ``output_dir`` and return its cuts by split.

    Args:
        output_dir: made if missing; an earlier toy corpus in it is replaced, other files are left alone.
        sizes: number of utterances by split, some of train, dev, test.
        seed: of everything that is drawn.
        label_share: task -> share (0..1) of the training cuts that are labelled for it; 1 where not given.
    """
    output_dir = Path(output_dir).resolve()
    staging = output_dir / ".partial"
    shutil.rmtree(staging, ignore_errors=True)
    (staging / "audio").mkdir(parents=True)
    (staging / "encoder").mkdir()
    (staging / "encoder" / "config.json").write_text(json.dumps(ENCODER, indent=2) + "\n", encoding="utf-8")

    barred: Set[str] = set()
    cut_sets: Dict[str, CutSet] = {}
    for index, split in enumerate(SPLITS):
        if split not in sizes:
            continue
        rng = np.random.default_rng((seed, index))
        cuts: List[MonoCut] = []
        for number in range(sizes[split]):
            cut_id = f"toy-{split}-{number:05d}"
            # Languages in turn, so that every set has all of them.
            language = LANGUAGES[number % len(LANGUAGES)]
            audio, turns = compose_utterance(language, rng, barred)
            soundfile.write(staging / "audio" / f"{cut_id}.flac", audio, SAMPLING_RATE, subtype="PCM_16")
            cuts.append(make_cut(cut_id, output_dir / "audio" / f"{cut_id}.flac", len(audio), turns, language.code))
        barred.update(sup.text for cut in cuts for sup in cut.supervisions)
        if split == "train":
            cuts = withhold_labels(cuts, label_share or {}, np.random.default_rng((seed, len(SPLITS))))
        cut_sets[split] = CutSet.from_cuts(cuts)
        cut_sets[split].to_file(staging / f"cuts_{split}.jsonl.gz")
    _move_into_place(staging, output_dir)
    return cut_sets


def make_cut(cut_id: str, path: Path, samples: int, turns: Sequence[ToyTurn], language: str) -> MonoCut:
    """A cut of one recording, one supervision a turn, labelled for every task."""
    duration = samples / SAMPLING_RATE
    source = AudioSource(type="file", channels=[0], source=str(path))
    recording = Recording(cut_id, [source], SAMPLING_RATE, num_samples=samples, duration=duration)
    supervisions = [
        SupervisionSegment(
            id=f"{cut_id}-{i}",
            recording_id=cut_id,
            start=turn.start,
            duration=turn.end - turn.start,
            channel=0,
            text=turn.text,
            language=language,
            speaker=turn.speaker.name,
            custom={"entities": [dict(entity) for entity in turn.entities], "endpoint": turn.complete},
        )
        for i, turn in enumerate(turns)
    ]
    custom = {"tasks": list(TASKS), "corpus": CORPUS}
    return MonoCut(cut_id, 0.0, duration, 0, supervisions=supervisions, recording=recording, custom=custom)


def withhold_labels(
    cuts: Sequence[MonoCut], label_share: Mapping[str, float], rng: np.random.Generator
) -> List[MonoCut]:
    """Leave only a share of the cuts labelled for a task; the others lose the task's name and its labels."""
    kept = list(cuts)
    for task in TASKS:
        if task in label_share:
            labelled = round(label_share[task] * len(kept))
            for i in rng.permutation(len(kept))[labelled:]:
                kept[i] = _without(kept[i], task)
    return kept


def _without(cut: MonoCut, task: str) -> MonoCut:
    for sup in cut.supervisions:
        if task == "scd":
            sup.speaker = None
        elif task == "lid":
            sup.language = None
        else:
            del sup.custom[{"ner": "entities", "endp": "endpoint"}[task]]
    cut.custom["tasks"] = [name for name in cut.custom["tasks"] if name != task]
    return cut


def _move_into_place(staging: Path, output_dir: Path) -> None:
    """Old manifests go first and new ones come last: a manifest never lists audio that is not there."""
    for split in SPLITS:
        (output_dir / f"cuts_{split}.jsonl.gz").unlink(missing_ok=True)
    for folder in ("audio", "encoder"):
        shutil.rmtree(output_dir / folder, ignore_errors=True)
        os.replace(staging / folder, output_dir / folder)
    for manifest in sorted(staging.iterdir()):
        os.replace(manifest, output_dir / manifest.name)
    staging.rmdir()


def parse_label_share(text: str) -> Dict[str, float]:
    """``ner=0.5,scd=0.2`` -> ``{"ner": 0.5, "scd": 0.2}``."""
    shares: Dict[str, float] = {}
    for item in filter(None, text.split(",")):
        task, _, value = item.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if task not in TASKS[1:] or not 0 <= share <= 1:
            raise UserError(
                f"--label-share {item}: expected TASK=SHARE with a task among {', '.join(TASKS[1:])} "
                "and a share from 0 to 1"
            )
        shares[task] = share
    return shares


@click.command(help="Make the toy corpus: synthetic speech labelled for all five tasks.")
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for the audio and the cuts.",
)
@click.option(
    "--train", type=click.IntRange(min=1), default=1500, show_default=True, help="Number of training utterances."
)
@click.option(
    "--dev", type=click.IntRange(min=1), default=100, show_default=True, help="Number of development utterances."
)
@click.option("--test", type=click.IntRange(min=1), default=200, show_default=True, help="Number of test utterances.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random sentences and voices."
)
@click.option(
    "--label-share",
    default="",
    help="Share of the training cuts labelled for a task, e.g. ner=0.5,scd=0.2 [default: all]",
)
def main(output_dir: Path, train: int, dev: int, test: int, seed: int, label_share: str) -> None:
    """Command line of `prepare_toy`."""
    with report_errors():
        sizes = {"train": train, "dev": dev, "test": test}
        cut_sets = prepare_toy(output_dir, sizes, seed, parse_label_share(label_share))
    for split in ("train", "dev", "test"):
        cuts = list(cut_sets[split])
        labelled = ", ".join(f"{task} {sum(task in cut.custom['tasks'] for cut in cuts)}" for task in TASKS)
        minutes = sum(cut.duration for cut in cuts) / 60
        click.echo(f"{split}: {len(cuts)} utterances, {minutes:.1f} min; labelled: {labelled}")


if __name__ == "__main__":
    main()
