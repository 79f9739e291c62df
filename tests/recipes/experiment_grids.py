"""A grid on the toy corpus, and made-up runs of it (pytest puts this folder on the path)."""

import json
from pathlib import Path

import yaml
from grid.grid import load_grid
from grid.runs import Place
from toy_runs import toy_options

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes" / "human_speech" / "experiments.py"
TASKS = ["asr", "scd", "endp", "ner", "lid"]


def write_grid(corpus, path, steps=6, **changes):
    """TokenVerse++ of two seeds, speech recognition that starts from it, and a sweep over its tasks."""
    words = toy_options(corpus, "unused", training__max_steps=steps, training__save_every=2, training__valid_every=100)
    given = dict(zip(words[::2], words[1::2]))
    for word in ("--training.exp_dir", "--data.train", "--data.valid", "--tokenizer.vocab_size"):
        del given[word]
    # In a file of its own, so that files and settings are both tried.
    config = path.with_name("base.yaml")
    config.write_text(yaml.safe_dump({"model": {"predictor_dim": 99}, "data": {"min_seconds": 0.2}}))
    grid = {
        "corpora": {part: f"cuts_{part}.jsonl.gz" for part in ("train", "dev", "test")},
        "common": {
            "configs": [str(config)],
            "settings": {key[2:]: yaml.safe_load(value) for key, value in given.items()},
            "train": "all",
            "seeds": [1, 2],
            "tokenizer": {"tasks": TASKS, "languages": ["qaa", "qab"], "vocab_size": 50},
            "decode": {"beam": 2},
        },
        "manifests": {"all": None, "half": {"keep_labels": {"ner": 0.5}}},
        "runs": {
            "pp": {"about": "all of it", "switching": True},
            "asr": {
                "about": "words",
                "settings": {"tasks.names": ["asr"], "model.vectors.placement": "none"},
                "seeds": [1],
            },
            "sets": {"about": "sets", "of": "pp", "seeds": [1], "sweep": {"tasks": ["asr", "asr,ner"]}},
        },
        "worst": ["pp", "none of these"],
        "plots": {"sets": [{"title": "t", "x": "x", "lines": {"WER": {"metric": "wer", "runs": {"asr": 0, "pp": 1}}}}]},
    }
    grid.update(changes)
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    return path


def place_of(grid, corpus, exp_dir):
    return Place(load_grid(grid, ROOT), exp_dir, Path(corpus))


def finish(folder, hyps):
    """Make a run's folder look finished: ``hyps`` are the hypotheses of all its decodings.

    Switching is counted as if every cut had its speaker changes written with asr alone.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.note("trained.json", {"digest": folder.trained_digest, "steps": 6, "seconds": 60.0, "commit": "c0ffee"})
    for decoding in folder.run.decodings:
        output = folder.output(decoding)
        output.mkdir(parents=True)
        (output / "hyps.jsonl").write_text("".join(json.dumps(hyp) + "\n" for hyp in hyps))
        (output / "decoded.json").write_text(json.dumps({"digest": folder.decoding_digest(decoding), "seconds": 3.0}))
    if folder.run.switching:
        output = folder.output(folder.run.switching)
        output.mkdir(parents=True)
        counts = {"switched off scd": {hyp["id"]: (1.0, 1.0) for hyp in hyps}}
        (output / "switching.json").write_text(json.dumps({"counts": counts}))
        (output / "decoded.json").write_text(json.dumps({"digest": folder.decoding_digest(folder.run.switching)}))
