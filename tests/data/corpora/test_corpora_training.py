"""From each miniature corpus to scores: prepared cuts, tokenizer, two training steps, decoding, scoring."""

import json
import re

import pytest
import yaml
from command_lines import run_ok
from lhotse import CutSet
from mini_corpora import make_earnings, make_fleurs, make_slue, sentence, speech, write
from mini_runs import CORPORA, Prepared
from safetensors.torch import load_file
from toy_runs import ROOT, call_ok, toy_options

LANGUAGES = ["de", "en", "fr", "pl", "sv"]
FILES = {
    "commonvoice": ("train_sv", "dev_sv", "test_sv"),
    "earnings22": ("test", "test", "test"),
    "eval2000": ("test", "test", "test"),
    "fleurs": ("train_fr", "dev_fr", "test_fr"),
    "librispeech": ("train_clean_100", "dev_clean", "test_other"),
    "mls": ("train_de", "dev_de", "test_de"),
    "voxpopuli": ("train_en", "dev_en", "test_en"),
}


def train(script, encoder_corpus, exp_dir, train_files, valid_files, **changes):
    """Two steps with the tiny wav2vec2; the tokenizer is trained on the way."""
    defaults = {
        "data__train": train_files,
        "data__valid": valid_files,
        "data__max_cuts": 4,
        "tasks__languages": LANGUAGES,
        "tokenizer__vocab_size": 46,
        "training__max_steps": 2,
        "training__valid_every": 2,
        "training__save_every": 2,
    }
    done = call_ok(script.main, *toy_options(encoder_corpus, exp_dir, **{**defaults, **changes}))
    return done


def check_chain(name, corpora, train_script, decode_script, encoder_corpus, tmp_path):
    out = corpora[name].out
    files = [str(out / f"cuts_{part}.jsonl.gz") for part in FILES.get(name, ("train", "dev", "test"))]
    tasks = next(iter(CutSet.from_file(files[0]))).custom["tasks"]
    train(train_script, encoder_corpus, tmp_path / "exp", files[:1], files[1:2], tasks__names=tasks)
    steps = [json.loads(line) for line in (tmp_path / "exp" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in steps if r.get("kind") == "train"] == [1, 2]
    # After two steps the model says little; the penalty has it say all kinds of things.
    options = ["--model", tmp_path / "exp", "--cuts", files[2], "--output-dir", tmp_path / "out", "--threads", 1]
    call_ok(decode_script.main, *options, "--blank-penalty", 4, "--method", "greedy")
    run_ok("score", "--ref", files[2], "--hyp", tmp_path / "out" / "hyps.jsonl", "--output", tmp_path / "s.json")
    scores = json.loads((tmp_path / "s.json").read_text())
    words = sum(len(s.text.split()) for cut in CutSet.from_file(files[2]) for s in cut.supervisions)
    assert scores["wer"]["all"]["words"] == words > 0
    # Every task that the corpus is labelled for is scored, and no other.
    assert {task for task in ("scd", "endp", "ner", "lid") if scores.get(task)} == set(tasks) - {"asr"}


@pytest.mark.parametrize(
    "name", [name if name in ("ami", "commonvoice") else pytest.param(name, marks=pytest.mark.slow) for name in CORPORA]
)
def test_from_corpus_to_scores(name, corpora, train_script, decode_script, tiny_corpus, tmp_path):
    check_chain(name, corpora, train_script, decode_script, tiny_corpus, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_earnings, make_fleurs, make_slue])
def test_from_evaluation_set_to_scores(make, train_script, decode_script, tiny_corpus, tmp_path):
    name = {make_earnings: "earnings22", make_fleurs: "fleurs", make_slue: "slue-voxpopuli"}[make]
    source, out = make(tmp_path / "corpus"), tmp_path / "cuts"
    result = run_ok("manifest", "prepare", name, source, out)
    prepared = {name: Prepared(source, out, result.stdout)}
    check_chain(name, prepared, train_script, decode_script, tiny_corpus, tmp_path)


@pytest.fixture
def entity_corpus(tmp_path):
    """A table of own recordings, entities marked in the text -> cuts of asr, ner and lid."""
    rows = ["audio,text,speaker"]
    for number in range(6):
        text = sentence("en", number)
        first, *others = text.split()
        write(tmp_path / "own" / f"{number}.wav", speech(text, 16000), 16000)
        shown = f"[{first}](PER) {' '.join(others)}" if number % 2 else text
        rows.append(f"{number}.wav,{shown},s{number % 3}")
    (tmp_path / "own" / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    cuts = tmp_path / "entities.jsonl.gz"
    run_ok("manifest", "import", cuts, "--table", tmp_path / "own" / "table.csv", "--inline-entities", "brackets",
                 "--set", "language=en", "--tasks", "asr,ner,lid", "--normaliser", "words")  # fmt: skip
    return cuts


def test_three_corpora_with_other_labels_train_together_by_the_recipes_yaml(
    corpora, entity_corpus, train_script, tiny_corpus, tmp_path
):
    files = [
        corpora["ami"].out / "cuts_train.jsonl.gz",
        corpora["commonvoice"].out / "cuts_train_fr.jsonl.gz",
        entity_corpus,
    ]
    # The recipe's own file; only sizes and places are those of a test.
    config = yaml.safe_load((ROOT / "recipes" / "own_data" / "conf" / "three_corpora.yaml").read_text(encoding="utf-8"))
    assert len(config["data"]["train"]) == len(config["data"]["weights"]) == 3
    config["data"].update(
        train=[str(f) for f in files], valid=[str(files[0])], num_workers=0, max_cuts=6, num_buckets=1
    )
    config["tokenizer"]["vocab_size"] = 52
    config["model"].update(predictor_dim=32, joiner_dim=32)
    config["model"]["encoder"].update(name=str(tiny_corpus / "encoder"), random_init=True)
    config["training"].update(
        exp_dir=str(tmp_path / "exp"), max_steps=4, log_every=1, valid_every=4, save_every=4, precision="fp32",
        average_last=1, threads=1,
    )  # fmt: skip
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    call_ok(train_script.main, "--config", path)
    model = yaml.safe_load((tmp_path / "exp" / "model" / "config.yaml").read_text(encoding="utf-8"))
    assert model["tasks"]["names"] == ["asr", "scd", "endp", "ner", "lid"]
    weights = load_file(tmp_path / "exp" / "model" / "model.safetensors")
    # One vector a task; each has learnt something, so each was active in one corpus at least.
    assert weights["feature_vectors.table"].shape[0] == 5
    assert (weights["feature_vectors.table"].abs().sum(dim=1) > 0).all()

    # What each corpus gives to each task.
    result = run_ok("manifest", "stats", *files, "--json", tmp_path / "stats.json")
    by_corpus = json.loads((tmp_path / "stats.json").read_text(encoding="utf-8"))["corpora"]
    given = [{task for task, c in group["tasks"].items() if c["labelled"]["cuts"]} for group in by_corpus.values()]
    assert sorted(given, key=sorted) == [{"asr", "lid", "endp", "scd"}, {"asr", "lid"}, {"asr", "lid", "ner"}]
    # The last table: all the hours with entities come from one.
    assert re.search(r"^entities .* 100 % ", result.stdout, re.MULTILINE)
