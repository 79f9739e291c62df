"""Task transfer: a model gains tasks and languages, and loses nothing of what it could."""

import importlib.util
import shutil
import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet
from runs import train_on_ranks
from safetensors.torch import load_file, save_file
from toy_runs import SPLIT, assert_one_line, call, call_ok, read_cuts, toy_options, toy_parts

from tokenverse_pp.base.config_files import parse_config, save_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.data.dataset import load_inputs
from tokenverse_pp.data.tokenizer import BLANK_ID, train_tokenizer
from tokenverse_pp.decoding.recognizer import search
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import ModelBundle, build_model, load_model
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.training.optim import TrainedRows
from tokenverse_pp.training.transfer import (
    VOCABULARY_ROWS,
    Before,
    continue_vectors,
    new_below_mean,
    old_row_of_each,
    read_source,
    start_from,
)

OLD = {"tasks__names": ["asr", "scd", "lid"], "tasks__languages": ["qaa"], "tokenizer__vocab_size": 24}
NEW = {"tasks__names": ["asr", "scd", "endp", "ner", "lid"], "tasks__languages": ["qaa", "qab"]}
ADDED = ["[ENDP]", "[NE]", "[/NE]", "[QAB]"]


def save_old(corpus, folder, **changes):
    """A model of few tasks with random weights, vectors included -> Loaded, read back from its folder."""
    parts = toy_parts(corpus, **{**OLD, "model__loss__ctc_scale": 1, **changes})
    generator = torch.Generator().manual_seed(3)
    for name, parameter in parts.model.named_parameters():
        if name.endswith(("table", "output.bias")):
            parameter.data.normal_(generator=generator)
    folder.mkdir()
    save_config(parts.config, folder / checkpoint.CONFIG)
    texts = {name: (folder / name).read_bytes() for name in [checkpoint.CONFIG]}
    texts[checkpoint.TOKENIZER] = parts.tokenizer.model
    checkpoint.write_folder(folder, {checkpoint.WEIGHTS: parts.model.checkpoint_state()}, texts)
    return load_model(folder)


def extend(corpus, folder, **changes):
    """The model with all tasks that starts from an old one, before any step; and what was added."""
    return started(corpus, folder, **{**NEW, **changes})[:2]


def started(corpus, folder, texts=(), train_only="new", **changes):
    """What `extend` gives, and the lines that were told. Characters of texts become tokens."""
    parts = toy_parts(corpus, **{"model__loss__ctc_scale": 1, **changes}, training__init_from=folder)
    source, said = read_source(parts.config, parts.tasks), []
    tokenizer = source.tokenizer.extended(parts.tasks.symbols, texts)
    model = build_model(parts.config, parts.tasks, tokenizer)
    parts.config.training.train_only = train_only
    lowered = new_below_mean(parts.config.training)
    added = start_from(source, model, parts.tasks, tokenizer, said.append, lowered, train_only == "all")
    return ModelBundle(parts.config, parts.tasks, tokenizer, model.eval()), added, said


@pytest.fixture(scope="module")
def corpus(tiny_corpus, tmp_path_factory):
    """The eight shortest cuts of the tiny corpus in cuts_train, and those of the first language in cuts_old."""
    folder = tmp_path_factory.mktemp("corpus")
    cuts = sorted(read_cuts(tiny_corpus), key=lambda cut: cut.duration)[:8]
    CutSet.from_cuts(cuts).to_file(folder / "cuts_train.jsonl.gz")
    first = [cut for cut in cuts if cut.supervisions[0].language == "qaa"]
    CutSet.from_cuts(first).to_file(folder / "cuts_old.jsonl.gz")
    shutil.copytree(tiny_corpus / "encoder", folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def old_run(corpus, train_script, tmp_path_factory):
    """Experiment folder of two training steps with three of the tasks and one language."""
    exp_dir = tmp_path_factory.mktemp("old") / "exp"
    changes = {**OLD, **few(2), "data__train": [corpus / "cuts_old.jsonl.gz"], "data__valid": []}
    call_ok(train_script.main, *toy_options(corpus, exp_dir, **changes))
    return exp_dir


def few(steps, **changes):
    return {
        "training__max_steps": steps,
        "training__save_every": 2,
        "data__max_cuts": 3,
        "training__average_last": 1,
        **changes,
    }


def transfer(train_script, corpus, exp_dir, old_run, steps=2, **changes):
    """A run of all tasks from ``old_run``, with learning rates and weight decay that move what can move."""
    options = {**NEW, **few(steps), "data__valid": [], "training__init_from": old_run, "optim__weight_decay": 0.5}
    return call(train_script.main, *toy_options(corpus, exp_dir, **{**options, "optim__lr": 0.01, **changes}))


def weights(exp_dir):
    return load_file(exp_dir / "model" / "model.safetensors")


SMALL = train_tokenizer(["ba di gu ka mu ibi uda", "le po ta se mo alo nos"], build_tasks(["scd"]), vocab_size=25)
texts = st.text("abdegiklmnopstu ", max_size=30)


@given(texts, st.text("áñжשー", max_size=5))
def test_extended_vocabulary_keeps_the_pieces_of_old_texts(old_text, new_text):
    old = SMALL
    new = old.extended(["[SCD]", "[A]", "[/A]"], [new_text])
    assert new.extends(old) and not old.extends(new)
    assert new.encode(old_text) == old.encode(old_text)
    assert [new.id_of(symbol) for symbol in ("[A]", "[/A]")] == [old.vocab_size, old.vocab_size + 1]
    assert new.decode(new.encode(f"[A] {new_text} [/A] [SCD]")) == f"[A] {new_text} [/A] [SCD]".replace("  ", " ")


def test_vocabulary_with_nothing_new_stays_the_very_same():
    old = train_tokenizer(["ba di"], build_tasks(["scd"]), vocab_size=8)
    assert old.extended(["[SCD]"], ["di ba"]) is old
    assert not train_tokenizer(["ba di do"], build_tasks(["scd"]), vocab_size=9).extends(old)


def test_how_low_new_tokens_start_is_an_option(corpus, tmp_path):
    old = save_old(corpus, tmp_path / "old")
    low, zero = (extend(corpus, tmp_path / "old", **c)[0].model for c in ({}, {"training__new_below_mean": 0.0}))
    known = old.tokenizer.vocab_size
    torch.testing.assert_close(low.joiner.output.bias[known:], zero.joiner.output.bias[known:] - 10)
    torch.testing.assert_close(zero.joiner.output.bias[known], old.model.joiner.output.bias[1:].mean())
    for (name, a), b in zip(low.named_parameters(), zero.parameters()):
        assert torch.equal(a[:known], b[:known]) if name == "joiner.output.bias" else torch.equal(a, b)


@pytest.mark.parametrize("strategy", ["sum", "combination"])
@pytest.mark.parametrize("placement", ["none", "both"])
def test_extended_model_writes_what_the_old_one_wrote(corpus, tmp_path, strategy, placement):
    places = {"model__vectors__strategy": strategy, "model__vectors__placement": placement}
    old = save_old(corpus, tmp_path / "old", **places)
    new, added = extend(corpus, tmp_path / "old", **{**places, "model__vectors__placement": "both"})
    assert added == ["task endp", "task ner", *ADDED]
    audio = [load_inputs(cut) for cut in read_cuts(corpus)[:3]]
    for names in (["asr"], ["asr", "scd", "lid"]):
        for method in ("greedy", "beam"):
            languages = ("qaa",) if "lid" in names else None
            options = SearchOptions(method=method, languages=languages, force_language=False)  # not trained
            found = [search(model, audio, names, options) for model in (old, new)]
            assert sum(len(best[0].tokens) for best in found[0]) > 10
            for before, after in zip(*found):
                assert (after[0].tokens, after[0].frames) == (before[0].tokens, before[0].frames)
                assert after[0].log_prob == pytest.approx(before[0].log_prob, abs=1e-3)


def test_rows_of_the_extended_model(corpus, tmp_path):
    old = save_old(corpus, tmp_path / "old", model__vectors__placement="both")
    new, _ = extend(corpus, tmp_path / "old", model__vectors__placement="both")
    before, after = old.model.state_dict(), new.model.state_dict()
    size = old.tokenizer.vocab_size
    assert new.tokenizer.pieces(range(size, new.tokenizer.vocab_size)) == ADDED
    for name in before:
        if name in VOCABULARY_ROWS:
            assert torch.equal(after[name][:size], before[name])
            others = torch.arange(size) != BLANK_ID
            expected = before[name][others].double().mean(0) - (10 if name == "joiner.output.bias" else 0)
            assert torch.allclose(after[name][size:].double(), expected.expand_as(after[name][size:]), atol=1e-5)
        elif not name.endswith((".table", ".trained")):
            assert torch.equal(after[name], before[name]), name
    for table in ("feature_vectors.table", "encoder_vectors.table"):  # asr scd lid -> asr scd endp ner lid
        assert torch.equal(after[table][[0, 1, 4]], before[table]) and not after[table][2:4].any()


def test_new_tokens_start_like_their_peers_where_all_is_trained(corpus, tmp_path):
    old = save_old(corpus, tmp_path / "old", tasks__languages=["qaa", "qab"], model__vectors__placement="both")
    letters = [piece for piece in old.tokenizer.pieces() if piece in "aeiou"]
    texts = [
        unicodedata.normalize("NFC", letters[0] + "\u0302"),
        unicodedata.normalize("NFC", letters[1] + "\u0300"),
        "ш",
    ]
    changes = {**NEW, "tasks__languages": ["qaa", "qab", "qac"], "model__vectors__placement": "both"}
    new, added, _ = started(corpus, tmp_path / "old", texts, "all", **changes)
    before, after = old.model.state_dict(), new.model.state_dict()
    others = [i for i in range(old.tokenizer.vocab_size) if i != BLANK_ID]
    like = {piece: others for piece in ("[ENDP]", "[NE]", "[/NE]", "ш")}
    like["[QAC]"] = [old.tokenizer.id_of("[QAA]"), old.tokenizer.id_of("[QAB]")]
    like.update((ours, [old.tokenizer.id_of(letter)]) for ours, letter in zip(texts[:2], letters))
    assert set(like) == set(added[2:])  # two tasks before
    for name in set(before) & set(VOCABULARY_ROWS):
        assert torch.equal(after[name][: len(before[name])], before[name])
        for piece, peers in like.items():
            expected = before[name][peers].double().mean(0) - int(name == "joiner.output.bias")
            found = after[name][new.tokenizer.id_of(piece)].double()
            assert torch.allclose(found, expected, atol=1e-5), (name, piece)
    audio = [load_inputs(cut) for cut in read_cuts(corpus)[:3]]
    options = SearchOptions(method="greedy", languages=("qaa", "qab"))
    found = [search(model, audio, ["asr", "scd", "lid"], options) for model in (old, new)]
    assert sum(len(best[0].tokens) for best in found[0]) > 10
    assert [best[0].tokens for best in found[0]] == [best[0].tokens for best in found[1]]


def test_weights_of_half_precision_are_extended(corpus, tmp_path):
    save_old(corpus, tmp_path / "old", model__vectors__placement="both")
    path = tmp_path / "old" / "model.safetensors"
    halved = {name: value.half() if value.is_floating_point() else value for name, value in load_file(path).items()}
    save_file(halved, path)
    (tmp_path / "old" / "checksums.json").unlink(missing_ok=True)
    new, added = extend(corpus, tmp_path / "old", model__vectors__placement="both")
    found = new.model.state_dict()["feature_vectors.table"]
    assert added == ["task endp", "task ner", *ADDED]
    assert {value.dtype for value in new.model.parameters()} == {torch.float32}
    assert torch.equal(found[[0, 1, 4]], halved["feature_vectors.table"].float())


@given(st.lists(st.sampled_from("abcdefg"), unique=True, max_size=6), st.integers(0, 2**6 - 1))
def test_combinations_keep_their_rows(others, chosen):
    old = ["asr", *(name for i, name in enumerate(others) if chosen >> i & 1)]
    rows, is_new = old_row_of_each("combination", old, ["asr", *others])

    def row(names, of):
        return sum(2**i for i, name in enumerate(of[1:]) if name in names)

    for combination in range(2 ** len(others)):
        names = [name for i, name in enumerate(others) if combination >> i & 1]
        assert rows[combination] == row(names, old)
        assert bool(is_new[combination]) == any(name not in old for name in names)


@pytest.mark.parametrize("forms", [("binary", "centred"), ("centred", "binary"), ("centred", "centred")])
def test_vectors_of_another_code_and_scale_are_converted(corpus, tmp_path, forms):
    old_code, new_code = ({"model__vectors__code": code, "model__vectors__placement": "both"} for code in forms)
    old = save_old(corpus, tmp_path / "old", **old_code, model__vectors__scale=2.0)
    new, _ = extend(corpus, tmp_path / "old", **new_code, model__vectors__scale=0.5)
    for names in (["asr"], ["asr", "lid"], ["asr", "scd", "lid"]):
        for table in ("feature_vectors", "encoder_vectors"):
            ours, theirs = (
                getattr(m.model, table)(torch.tensor([m.tasks.mask(names)], dtype=torch.float32)) for m in (new, old)
            )
            assert torch.allclose(ours, theirs, atol=1e-5)


def settled(corpus, folder, **changes):
    """``model.vectors.masked`` of a run that starts from a model folder."""
    parts = toy_parts(corpus, **{**NEW, "model__loss__ctc_scale": 1, **changes}, training__init_from=folder)
    continue_vectors(parts.config, read_source(parts.config, parts.tasks), None)
    return parts.config.model.vectors.masked


def test_vectors_stay_where_they_were_added(corpus, tmp_path):
    """In a model folder from before `model.vectors.masked` existed they were added after the masks."""
    save_old(corpus, tmp_path / "new")
    assert settled(corpus, tmp_path / "new") is True
    save_old(corpus, tmp_path / "old")
    path = tmp_path / "old" / checkpoint.CONFIG
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line for line in lines if not line.strip().startswith("masked:")), encoding="utf-8")
    assert load_model(tmp_path / "old").config.model.vectors.masked is False
    assert settled(corpus, tmp_path / "old") is False
    assert settled(corpus, tmp_path / "old", model__vectors__masked="true") is True
    # The run has no vectors at the seam, so there is nothing to go on with.
    assert settled(corpus, tmp_path / "old", model__vectors__placement="encoder") is True


def test_a_run_masks_as_the_model_did_that_it_continues_from(corpus, tmp_path):
    """A run from before `model.spec_augment.fill` existed masked with zeros."""
    save_old(corpus, tmp_path / "old", model__spec_augment__fill="zero")
    path = tmp_path / "old" / checkpoint.CONFIG
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line for line in lines if not line.strip().startswith("fill:")), encoding="utf-8")

    def fill(start=None, **changes):
        config = toy_parts(corpus, **NEW, **changes).config
        continue_vectors(config, None, start)
        return config.model.spec_augment.fill

    assert fill() == "mean" and fill(tmp_path / "old") == "zero"
    assert fill(tmp_path / "old", model__spec_augment__fill="mean") == "mean"
    words = [f"--training.init_from={tmp_path / 'old'}"]
    for more, expected in (([], "zero"), (["--model.spec_augment.fill=mean"], "mean")):
        config = parse_config([*words, *more], find_model=lambda config: tmp_path / "old")
        assert config.model.spec_augment.fill == expected


@pytest.mark.parametrize("strategy", ["sum", "combination"])
def test_only_what_is_new_moves(train_script, corpus, tmp_path, strategy):
    save_old(corpus, tmp_path / "old", model__vectors__strategy=strategy)
    changes = {"model__vectors__strategy": strategy, "model__loss__ctc_scale": 1, "training__train_only": "new"}
    done = transfer(train_script, corpus, tmp_path / "exp", tmp_path / "old", **changes)
    assert done.code == 0, done.stderr
    before, after = load_file(tmp_path / "old" / "model.safetensors"), weights(tmp_path / "exp")
    _, is_new = old_row_of_each(strategy, ["asr", "scd", "lid"], NEW["tasks__names"])
    started, _ = extend(corpus, tmp_path / "old", model__vectors__strategy=strategy)
    for name, was in before.items():
        if name in VOCABULARY_ROWS:
            assert torch.equal(after[name][: len(was)], was), name
            fresh = started.model.state_dict()[name][len(was) :]
            assert not torch.isclose(after[name][len(was) :], fresh, rtol=0, atol=1e-6).all(), name
        elif name.endswith(".table"):
            start_table = started.model.state_dict()[name]
            assert torch.equal(after[name][~is_new], start_table[~is_new])
            assert not torch.equal(after[name][is_new], start_table[is_new])
        elif not name.endswith(".trained"):
            assert torch.equal(after[name], was), name


def test_new_and_joiner_moves_the_joiner_too(train_script, corpus, tmp_path, old_run):
    changes = {"training__train_only": "new_and_joiner"}
    assert transfer(train_script, corpus, tmp_path / "exp", old_run, **changes).code == 0
    before, after = weights(old_run), weights(tmp_path / "exp")
    size = len(before["joiner.output.bias"])
    for name, was in before.items():
        same = torch.equal(after[name][: len(was)] if name in VOCABULARY_ROWS else after[name], was)
        if name.startswith("joiner."):
            assert not same, name
        elif not name.startswith("feature_vectors"):
            assert same, name
    assert size < len(after["joiner.output.bias"])


@pytest.mark.parametrize("mode", ["all", pytest.param("new", marks=pytest.mark.slow)])
def test_transfer_resumes_without_the_model_it_came_from(train_script, corpus, tmp_path, old_run, mode):
    changes = {"training__train_only": mode, "optim__decay": "constant"}
    assert transfer(train_script, corpus, tmp_path / "whole", old_run, steps=3, **changes).code == 0
    shutil.copytree(old_run, tmp_path / "old")
    stopped = transfer(train_script, corpus, tmp_path / "exp", tmp_path / "old", steps=2, **changes)
    assert stopped.code == 0 and "new: task endp, task ner, [ENDP]" in stopped.stderr
    shutil.rmtree(tmp_path / "old")
    resumed = transfer(train_script, corpus, tmp_path / "exp", tmp_path / "old", steps=3, **changes)
    assert resumed.code == 0 and "resuming from step-00000002" in resumed.stderr
    ours, theirs = weights(tmp_path / "exp"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert load_model(tmp_path / "exp").tasks.names == tuple(NEW["tasks__names"])


@pytest.mark.slow
def test_only_what_is_new_moves_on_two_ranks(corpus, tmp_path, old_run):
    options = {**NEW, **few(3), "data__valid": [], "training__train_only": "new"}
    done = train_on_ranks(toy_options(corpus, tmp_path / "exp", training__init_from=old_run, **options))
    assert done.code == 0, done.stderr
    before, after = weights(old_run), weights(tmp_path / "exp")
    for name in VOCABULARY_ROWS[:-1]:
        if name in before:
            size = len(before[name])
            assert torch.equal(after[name][:size], before[name]), name
            assert after[name][size:].unique().numel() > 1, name


BAD = {
    "task lost": ({"tasks__names": ["asr", "ner", "lid"]}, ["the model has the task scd", "init_from"]),
    "language lost": ({"tasks__languages": ["qab"]}, ["the model has the token [QAA]"]),
    "other strategy": ({"model__vectors__strategy": "combination"}, ["model.vectors.strategy=sum"]),
    "no model": ({"training__init_from": "/no/such"}, ["/no/such"]),
    "other sizes": ({"model__joiner_dim": 16}, ["joiner.encoder_proj", "(32,)", "(16,)"]),
    "nothing new": ({**OLD, "training__train_only": "new"}, ["training.train_only=new", "new"]),
    "from nothing": ({"training__init_from": "null", "training__train_only": "new"}, ["needs --training.init_from"]),
    "no such mode": ({"training__train_only": "old"}, ["training.train_only", "new_and_joiner"]),
}


@pytest.mark.parametrize("name", BAD)
def test_transfer_that_cannot_be_is_refused_in_one_line(train_script, corpus, tmp_path, old_run, name):
    changes, said = BAD[name]
    options = {"data__train": [corpus / "cuts_old.jsonl.gz"], "data__validate": "false", **changes}
    failure = transfer(train_script, corpus, tmp_path / "exp", old_run, **options)
    assert_one_line(failure, *said)
    assert not (tmp_path / "exp").exists()


def test_another_vocabulary_is_refused(train_script, corpus, tmp_path, old_run):
    tasks = build_tasks(NEW["tasks__names"], {"lid": {"languages": ["qaa", "qab"]}})
    train_tokenizer(["ab ba bab"], tasks, vocab_size=16).save(tmp_path / "other.model")
    changes = {"tokenizer__model": tmp_path / "other.model"}
    failure = transfer(train_script, corpus, tmp_path / "exp", old_run, **changes)
    assert_one_line(failure, "another vocabulary", "leave out --tokenizer.model", old_run)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_model_with_a_frozen_encoder_starts_one_that_trains_its_upper_layers(corpus, tmp_path, lora_rank):
    if lora_rank:
        pytest.importorskip("peft")
    encoder = {"layers": [1, -1], "context_dim": 16, "context_heads": 2, "context_ffn": 24, "context_kernel": 5}
    encoder = {f"model__encoder__{key}": value for key, value in encoder.items()}
    old = save_old(corpus, tmp_path / "old", model__encoder__kind="frozen", **encoder)
    more = {"model__encoder__kind": "split", "model__encoder__split_layer": 1, "model__encoder__lora_rank": lora_rank}
    new, added = extend(corpus, tmp_path / "old", **encoder, **more)
    assert added[:2] == ["task endp", "task ner"]
    assert (
        not new.model.feature_vectors.table.any()
        and new.model.feature_vectors.table.shape[1] == new.model.encoder.feature_dim
    )
    # Without the vectors, whose seam is another one, both are the same function.
    old.model.feature_vectors = new.model.feature_vectors = None
    options = SearchOptions(languages=("qaa",))
    audio = [load_inputs(cut) for cut in read_cuts(corpus)[:3]]
    for before, after in zip(*(search(model, audio, ["asr", "scd", "lid"], options) for model in (old, new))):
        assert (after[0].tokens, after[0].frames) == (before[0].tokens, before[0].frames)


@pytest.mark.parametrize("mode", ["new", "new_and_joiner"])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_checkpoints_of_a_split_encoder_have_its_trained_layers_also_if_the_run_trains_new_rows_only(
    train_script, corpus, tmp_path, lora_rank, mode
):
    if lora_rank:
        pytest.importorskip("peft")
    encoder = {**SPLIT, "model__encoder__layers": [-1], "model__encoder__lora_rank": lora_rank}
    old = save_old(corpus, tmp_path / "old", **encoder)
    saved = set(checkpoint.read_names(tmp_path / "old" / checkpoint.WEIGHTS))
    assert any("lora_" in name for name in saved) == bool(lora_rank)
    model = extend(corpus, tmp_path / "old", **encoder)[0].model
    before = Before(old.tokenizer.vocab_size, list(old.tasks.names), ["feature_vectors"])
    TrainedRows(model, before, NEW["tasks__names"], mode)
    assert set(model.checkpoint_state()) == saved
    if lora_rank and mode == "new":
        for steps in (1, 2):
            options = {**encoder, "training__train_only": mode, "model__loss__ctc_scale": 1}
            done = transfer(train_script, corpus, tmp_path / "exp", tmp_path / "old", steps, **options)
            assert done.code == 0, done.stderr
        assert "resuming from step-00000001" in done.stderr
        assert set(weights(tmp_path / "exp")) == saved
        load_model(tmp_path / "exp")


PLACES = {(): "none", ("feature_vectors",): "features", ("encoder_vectors",): "encoder"}
HEADS = [(), ("ctc",), ("feature_vectors",), ("ctc", "encoder_vectors"), ("ctc", "feature_vectors", "encoder_vectors")]


def with_parts(parts):
    """Options of a model that has these auxiliary parts and no others."""
    tables = tuple(part for part in parts if part != "ctc")
    return {"model__loss__ctc_scale": int("ctc" in parts), "model__vectors__placement": PLACES.get(tables, "both")}


EVERY = [(old, new, tasks) for old in HEADS for new in HEADS for tasks in (OLD, NEW)]
CHOSEN = [(HEADS[0], HEADS[4], OLD), (HEADS[4], HEADS[0], NEW), (HEADS[2], HEADS[3], NEW), (HEADS[1], HEADS[1], OLD)]


@pytest.mark.parametrize(
    "old, new, tasks", [*CHOSEN, *(pytest.param(*case, marks=pytest.mark.slow) for case in EVERY if case not in CHOSEN)]
)
def test_parts_that_one_of_the_models_lacks_are_new_or_left_out_and_told(corpus, tmp_path, old, new, tasks):
    before = save_old(corpus, tmp_path / "old", **with_parts(old))
    after, added, said = started(corpus, tmp_path / "old", **{**tasks, **with_parts(new)})
    assert bool(added) == (tasks is NEW)
    lacking, left_out = [p for p in new if p not in old], [p for p in old if p not in new]
    assert len(said) == bool(lacking) + bool(left_out)
    ours, theirs = after.model.state_dict(), before.model.state_dict()
    for parts, of, words in ((lacking, ours, "it lacks"), (left_out, theirs, "is left out")):
        for part in parts:
            count = sum(
                value.numel() for key, value in of.items() if key.startswith(f"{part}.") and "trained" not in key
            )
            (line,) = [line for line in said if words in line]
            assert f"{part} ({count:,} parameters)" in line and str(tmp_path / "old") in line
    for key, value in theirs.items():
        if key.split(".")[0] not in left_out and not (tasks is NEW and (key in VOCABULARY_ROWS or "vectors" in key)):
            assert torch.equal(ours[key], value), key
    for part in lacking:
        fresh = build_model(after.config, after.tasks, after.tokenizer).state_dict()
        assert all(torch.equal(ours[key], fresh[key]) for key in ours if key.startswith(f"{part}."))
    if "ctc" in new and "ctc" in old:
        assert torch.equal(ours["ctc.weight"][: len(theirs["ctc.weight"])], theirs["ctc.weight"])


def without(*names):
    return lambda state: {key: value for key, value in state.items() if key not in names}


def narrower(name):
    return lambda state: {key: value[:, :-1] if key == name else value for key, value in state.items()}


BROKEN = {
    "half a CTC head": (without("ctc.bias"), "lacks tensor ctc.bias"),
    "half a table of vectors": (without("feature_vectors.trained"), "lacks tensor feature_vectors.trained"),
    "joiner": (without("joiner.encoder_proj.bias"), "lacks tensor joiner.encoder_proj.bias"),
    "predictor": (without("predictor.embedding.weight"), "lacks tensor predictor.embedding.weight"),
    "simple head": (without("simple_am.weight", "simple_am.bias"), "lacks tensor simple_am.bias"),
    "layer of the encoder": (
        without("encoder.backbone.encoder.layers.1.attention.q_proj.bias"),
        "lacks tensor encoder.backbone.encoder.layers.1.attention.q_proj.bias",
    ),
    "whole encoder": (
        lambda state: {key: value for key, value in state.items() if not key.startswith("encoder.")},
        "lacks tensor encoder.backbone.",
    ),
    "narrow vectors": (narrower("feature_vectors.table"), "tensor feature_vectors.table has shape"),
    "narrow CTC head": (narrower("ctc.weight"), "tensor ctc.weight has shape"),
    "narrow joiner": (narrower("joiner.output.weight"), "tensor joiner.output.weight has shape"),
    "something else": (lambda state: {**state, "head.weight": torch.ones(1)}, "has the unknown tensor head.weight"),
}


@pytest.mark.parametrize("tasks", [pytest.param(OLD, marks=pytest.mark.slow), NEW], ids=["same tasks", "more tasks"])
def test_tensors_that_are_missing_or_of_another_shape_are_refused(corpus, tmp_path, tasks):
    save_old(corpus, tmp_path / "old")
    loaded = started(corpus, tmp_path / "old", **tasks)[0]
    source = read_source(loaded.config, loaded.tasks)
    path = tmp_path / "old" / checkpoint.WEIGHTS
    whole = {key: value.clone() for key, value in load_file(path).items()}  # load_file maps the file that is written
    (tmp_path / "old" / checkpoint.CHECKSUMS).unlink()
    for name, (change, said) in BROKEN.items():
        save_file({key: value.contiguous() for key, value in change(whole).items()}, path)
        with pytest.raises(UserError, match="does not fit the model") as caught:
            start_from(source, loaded.model, loaded.tasks, loaded.tokenizer)
        assert said in str(caught.value) and "\n" not in str(caught.value), name


def test_run_tells_what_is_new_once_and_trains_the_new_head(train_script, corpus, tmp_path, old_run):
    changes = {**OLD, "data__train": [corpus / "cuts_old.jsonl.gz"], "model__loss__ctc_scale": 0.5, "data__max_cuts": 1}
    mode = {"training__train_only": "new", "optim__weight_decay": 0}
    done = transfer(train_script, corpus, tmp_path / "exp", old_run, **changes, **mode)
    assert done.code == 0, done.stderr
    after = weights(tmp_path / "exp")
    lines = [line for line in done.stderr.splitlines() if "it lacks ctc" in line]
    assert len(lines) == 1 and f"({after['ctc.weight'].numel() + after['ctc.bias'].numel():,} parameters)" in lines[0]
    # With train_only new the whole head is trained: all of it is new.
    fresh = started(corpus, old_run, **OLD)[0].model.state_dict()
    assert (after["ctc.weight"] != fresh["ctc.weight"]).any(dim=1).all()
    assert all(torch.equal(after[key], value) for key, value in weights(old_run).items() if "trained" not in key)
    resumed = transfer(train_script, corpus, tmp_path / "exp", old_run, steps=3, **changes, **mode)
    assert resumed.code == 0 and "it lacks" not in resumed.stderr
    # A resume is strict.
    gone = transfer(
        train_script, corpus, tmp_path / "exp", old_run, steps=4, **{**changes, "model__loss__ctc_scale": 0}
    )
    assert_one_line(gone, "does not fit the model: it has the unknown tensor ctc.bias")


SPLITS = {"context_dim": 16, "context_heads": 2, "context_ffn": 24, "context_kernel": 5, "layers": [1, -1]}


def encoder(**changes):
    return {f"model__encoder__{key}": value for key, value in {**SPLITS, **changes}.items()}


SEAMS = {
    "lower seam": (encoder(kind="split", split_layer=1), encoder(kind="split", split_layer=0), "froze layers"),
    "frozen to split": (encoder(kind="frozen"), encoder(kind="split", split_layer=1), "froze layers"),
    "adapters": ({}, {"model__encoder__lora_rank": 2}, "lacks adapters ("),
    "frozen to adapters": (
        encoder(kind="frozen"),
        encoder(kind="split", split_layer=0, lora_rank=2),
        "lacks adapters (",
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "adapters" in name else []) for name in SEAMS]
)
def test_what_the_source_froze_is_as_it_was_pretrained(corpus, tmp_path, name):
    old, new, told = SEAMS[name]
    if "adapters" in name:
        pytest.importorskip("peft")
    before = save_old(corpus, tmp_path / "old", **old, model__vectors__placement="none")
    after, _, said = started(corpus, tmp_path / "old", **OLD, **new, model__vectors__placement="none")
    assert any(told in line and "parameters)" in line for line in said)
    options = SearchOptions(languages=("qaa",))
    audio = [load_inputs(cut) for cut in read_cuts(corpus)[:2]]
    for a, b in zip(*(search(model, audio, ["asr", "scd", "lid"], options) for model in (before, after))):
        assert (a[0].tokens, a[0].frames) == (b[0].tokens, b[0].frames)


@pytest.mark.parametrize("alpha", [4.0, 6.0])
def test_adapters_are_widened_without_a_change_of_the_model(corpus, tmp_path, alpha):
    pytest.importorskip("peft")
    low, high = (
        encoder(kind="split", split_layer=0, lora_rank=rank, lora_alpha=a) for rank, a in ((2, 4.0), (3, alpha))
    )
    save_old(corpus, tmp_path / "old", **low)
    path = tmp_path / "old" / checkpoint.WEIGHTS
    tensors = {k: torch.randn_like(v) if ".lora_B" in k else v for k, v in load_file(path).items()}
    save_file(tensors, path)
    (tmp_path / "old" / checkpoint.CHECKSUMS).unlink()
    before, _, told = started(corpus, tmp_path / "old", **OLD, **low)
    assert told == []
    after, _, told = started(corpus, tmp_path / "old", **OLD, **high)
    assert [line for line in told if "adapters of rank 2 are widened to 3" in line] == told
    inputs, lens = torch.randn(2, 8000), torch.tensor([8000, 6000])
    for model in (before.model, after.model):
        model.eval()
    torch.testing.assert_close(*(m.model.encoder(inputs, lens)[0] for m in (before, after)))
    with pytest.raises(UserError, match=r"lora_rank=2; expected at least that, got 1"):
        started(corpus, tmp_path / "old", **OLD, **{**low, "model__encoder__lora_rank": 1})


def test_what_the_source_trained_is_never_taken_as_pretrained(corpus, tmp_path):
    save_old(corpus, tmp_path / "old", **encoder(kind="split", split_layer=0))
    ranks = [0, 2] if importlib.util.find_spec("peft") else [0]
    splits = [encoder(kind="split", split_layer=1, lora_rank=rank) for rank in ranks]
    for new in (*splits, encoder(kind="frozen")):
        with pytest.raises(UserError, match=r"unknown tensor encoder\.backbone"):
            started(corpus, tmp_path / "old", **OLD, **new)
    path = tmp_path / "old" / checkpoint.WEIGHTS
    key = "encoder.backbone.encoder.layers.1.feed_forward.output_dense.bias"
    save_file(without(key)({name: value.clone() for name, value in load_file(path).items()}), path)
    (tmp_path / "old" / checkpoint.CHECKSUMS).unlink()
    with pytest.raises(UserError, match=f"lacks tensor {key}"):
        started(corpus, tmp_path / "old", **OLD, **encoder(kind="split", split_layer=0))


def test_vectors_at_another_seam_start_at_zero_and_it_is_told(corpus, tmp_path):
    save_old(corpus, tmp_path / "old", **encoder(kind="split", split_layer=1))
    after, _, said = started(corpus, tmp_path / "old", **OLD, **encoder(kind="split", split_layer=0))
    assert not after.model.feature_vectors.table.any() and any("start at zero" in line for line in said)
    after, _, said = started(corpus, tmp_path / "old", **OLD, **encoder(kind="split", split_layer=1))
    assert after.model.feature_vectors.table.all() and said == []
    after, _, said = started(
        corpus, tmp_path / "old", **OLD, **encoder(kind="split", split_layer=0), **with_parts(["ctc"])
    )
    assert len(said) == 2 and any("its feature_vectors (" in line for line in said)  # and the layer that is new
