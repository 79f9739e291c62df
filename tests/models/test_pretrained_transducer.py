"""Predictor, joiner and vocabulary taken over from Parakeet and Nemotron: as transformers has them, and trained on."""

import importlib
import json

import pytest
import sentencepiece as spm
import torch
from encoder_families import FAMILIES, extractor_of, save_family
from toy_runs import call_ok, read_cuts, toy_options

from tokenverse_pp.api.model import TokenVerse
from tokenverse_pp.base.config_files import parse_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.recognizer import search, search_frames
from tokenverse_pp.losses.exact import rnnt_loss_joiner
from tokenverse_pp.models.bundle import ModelBundle, build_model, get_tokenizer, load_model, tasks_of
from tokenverse_pp.models.checkpoint import WEIGHTS, read_tensors
from tokenverse_pp.models.pretrained_transducer import read_vocabulary, read_weights
from tokenverse_pp.training.transfer import start_from_pretrained

pytest.importorskip("transformers", minversion="5.13")
RNNT = ("parakeet-rnnt", "nemotron")
PIECES = 36
LENS = [16000, 11000, 7000]


def save_tokenizer(folder, texts):
    """The tokenizer of a checkpoint as NVIDIA's are made: SentencePiece's BPE, converted by transformers."""
    from transformers import ParakeetTokenizer
    from transformers.convert_slow_tokenizer import ParakeetConverter

    spm.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "theirs"), model_type="bpe", vocab_size=PIECES,
        unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1, character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    made = ParakeetConverter(str(folder / "theirs.model")).converted()
    tokenizer = ParakeetTokenizer(tokenizer_object=made, unk_token="<unk>", clean_up_tokenization_spaces=False)
    tokenizer.save_pretrained(folder)
    return tokenizer


@torch.no_grad()
def make_lively(model, family, audio):
    """Random weights that write other tokens at other frames and behind other tokens, and blanks."""
    torch.manual_seed(2)
    inputs = extractor_of(family)(audio.numpy(), sampling_rate=16000, return_tensors="pt")
    frames = model.get_audio_features(inputs["input_features"]).last_hidden_state[0]
    spread, mean = frames.std(0).clamp(min=1e-3), frames.mean(0)
    model.encoder_projector.weight.copy_(torch.randn_like(model.encoder_projector.weight) / spread / 2)
    model.encoder_projector.bias.copy_(-model.encoder_projector.weight @ mean)
    for parameter in (*model.decoder.parameters(), model.joint.head.weight):
        parameter.copy_(torch.randn_like(parameter))
    model.joint.head.bias[PIECES] += 9
    model.generation_config.decoder_start_token_id = PIECES
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_corpus, speech):
    """Family -> folder of its checkpoint."""
    folders = {}
    texts = [sup.text for cut in read_cuts(tiny_corpus) for sup in cut.supervisions]

    def folder(family):
        if family not in folders:
            path = tmp_path_factory.mktemp(family)
            sizes = dict(vocab_size=PIECES + 1, blank_token_id=PIECES, max_symbols_per_step=3)
            save_family(family, path, **({} if family == "parakeet-ctc" else sizes))
            save_tokenizer(path, texts)
            if family != "parakeet-ctc":
                make_lively(theirs_of(family, path), family, speech[0]).save_pretrained(path)
            folders[family] = str(path)
        return folders[family]

    return folder


def theirs_of(family, folder):
    module, _, model_class, _ = FAMILIES[family]
    return getattr(importlib.import_module(f"transformers.models.{module}"), model_class).from_pretrained(folder).eval()


def taken_over(corpus, folder, tasks=("asr", "scd", "endp", "ner"), **changes):
    """The bundle that a run starts from, in eval mode."""
    changes = dict(model__encoder__name=folder, model__encoder__random_init="false", **changes)
    options = toy_options(corpus, "unused", model__transducer="pretrained", tasks__names=list(tasks), **changes)
    config = parse_config(options)
    tasks = tasks_of(config.tasks)
    tokenizer = get_tokenizer(config, tasks)
    model = build_model(config, tasks, tokenizer)
    start_from_pretrained(folder, model, 1.0)
    return ModelBundle(config, tasks, tokenizer, model.eval())


@pytest.fixture(scope="module")
def speech(tiny_corpus):
    from tokenverse_pp.data.dataset import load_inputs

    return [load_inputs(cut)[:length] for cut, length in zip(read_cuts(tiny_corpus, "test"), LENS)]


@torch.no_grad()
def generated(family, folder, audio):
    """Tokens that transformers' generate writes, without blanks, for one utterance (S,)."""
    inputs = extractor_of(family)(audio.numpy(), sampling_rate=16000, return_tensors="pt")
    count = int(inputs["attention_mask"].sum())  # some give one frame more, of padding
    model = theirs_of(family, folder)
    out = model.generate(
        input_features=inputs["input_features"][:, :count],
        attention_mask=inputs["attention_mask"][:, :count],
        max_new_tokens=1000,
    )
    return [token for token in out.sequences[0].tolist() if token != PIECES]


@pytest.mark.parametrize("family", ["parakeet-rnnt"])
def test_the_vocabulary_is_theirs_with_our_blank_in_front(family, saved, tiny_corpus):
    from transformers import AutoTokenizer

    ours, order = read_vocabulary(saved(family))
    theirs = AutoTokenizer.from_pretrained(saved(family))
    assert order[:2] == [PIECES, 0] and sorted(order) == list(range(PIECES + 1)) and ours.vocab_size == PIECES + 1
    for cut in read_cuts(tiny_corpus):
        for text in (sup.text for sup in cut.supervisions):
            assert [order[i] for i in ours.encode(text)] == theirs(text, add_special_tokens=False)["input_ids"]
            assert ours.decode(ours.encode(text)) == text
    more = ours.extended(["[SCD]"], ["ю"])
    assert more.extends(ours) and more.pieces([PIECES + 1, PIECES + 2]) == ["[SCD]", "ю"]


def test_a_unigram_vocabulary_with_special_tokens_and_one_that_is_not_of_sentencepiece(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoTokenizer, ParakeetTokenizer

    pieces = ["<unk>", "<|en|>", "▁", "a", "b", "▁a", "ab", "▁ab", "ba"]
    made = Tokenizer(models.Unigram([(piece, -float(i % 5)) for i, piece in enumerate(pieces)], unk_id=0))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    save_family("parakeet-rnnt", tmp_path, vocab_size=12, blank_token_id=11)
    ParakeetTokenizer(
        tokenizer_object=made, unk_token="<unk>", additional_special_tokens=["<|en|>"], pad_token=None
    ).save_pretrained(tmp_path)
    ours, order = read_vocabulary(str(tmp_path))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.pieces(range(12)) == ["<blk>", "<unk>", *pieces[1:], "<unused9>", "<unused10>"]
    for text in ("ab", "abba ba", "a b", "aab c"):
        assert [order[i] for i in ours.encode(text)] == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.id_of("<|en|>") not in ours.encode("<|en|> ab")  # special tokens are not read from texts
    other = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    ParakeetTokenizer(tokenizer_object=other, unk_token="<unk>", pad_token=None).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="tokenizer"):
        read_vocabulary(str(tmp_path))


@pytest.mark.parametrize("family", RNNT)
def test_before_training_the_words_are_those_of_transformers(family, saved, tiny_corpus, speech):
    """Greedy, token for token, in a batch, with the tokens of all tasks in the vocabulary and all tasks active."""
    bundle = taken_over(tiny_corpus, saved(family))
    _, order = read_vocabulary(saved(family))
    new = range(len(order), bundle.tokenizer.vocab_size)
    assert bundle.tokenizer.pieces(new)[:4] == ["[SCD]", "[ENDP]", "[NE]", "[/NE]"]
    active = torch.ones(3, 4)
    lens = torch.tensor([len(audio) for audio in speech])
    with torch.no_grad():
        out, frames = bundle.model.encode(torch.nn.utils.rnn.pad_sequence(speech, batch_first=True), lens, active)
        found = search_frames(bundle.model.predictor, bundle.model.joiner, out, frames, SearchOptions("greedy"))
    expected = [generated(family, saved(family), audio) for audio in speech]
    assert [[order[i] for i in best.tokens] for (best,) in found] == expected
    assert all(expected) and any(len(set(best.frames)) < len(best.frames) for (best,) in found)
    # And through the recognizer, which keeps the tokens of tasks out where only words are asked for.
    decoded = search(bundle, speech, ["asr"], SearchOptions("greedy"))
    if not any(0 in tokens for tokens in expected):  # <unk> is never written there
        assert [best.tokens for (best,) in decoded] == [best.tokens for (best,) in found]


def test_logits_are_those_of_tdt_without_durations(saved, tiny_corpus, speech):
    folder = saved("parakeet-tdt")
    bundle, theirs = taken_over(tiny_corpus, folder), theirs_of("parakeet-tdt", folder)
    _, order = read_vocabulary(folder)
    tokens = torch.tensor([[5, 9, 5]])
    inputs = extractor_of("parakeet-tdt")(speech[0].numpy(), sampling_rate=16000, return_tensors="pt")
    count = int(inputs["attention_mask"].sum())
    with torch.no_grad():
        history = torch.tensor([[PIECES, *(order[i] for i in tokens[0])]])
        expected = theirs(inputs["input_features"][:, :count], decoder_input_ids=history).logits[..., order]
        out, _ = bundle.model.encode(speech[0][None], torch.tensor([LENS[0]]), torch.ones(1, 4))
        model = bundle.model
        am, lm = model.joiner.encoder_proj(out), model.joiner.predictor_proj(model.predictor(tokens))
        found = model.joiner(am[:, :, None], lm[:, None])
    assert found.shape[-1] > expected.shape[-1] == PIECES + 1
    torch.testing.assert_close(found[..., : PIECES + 1], expected, atol=3e-3, rtol=3e-3)


def test_the_loss_is_theirs_and_pruned_it_is_near_before_training(saved, tiny_corpus, speech):
    """Pruned to all positions it is the exact loss; to five, by the bounds of the untrained simple joiner, near it."""
    bundle = taken_over(tiny_corpus, saved("parakeet-rnnt"), model__loss__prune_range=100)
    model = bundle.model
    with torch.no_grad():
        out, lens = model.encode(speech[0][None], torch.tensor([LENS[0]]), torch.ones(1, 4))
        (best,) = search_frames(model.predictor, model.joiner, out, lens, SearchOptions("greedy"))[0]
        tokens, count = torch.tensor([best.tokens]), torch.tensor([len(best.tokens)])
        am, lm = model.joiner.encoder_proj(out), model.joiner.predictor_proj(model.predictor(tokens))
        expected = rnnt_loss_joiner(am, lm, model.joiner.output, tokens, lens, count, 0, "none", "relu")
        torch.testing.assert_close(model.losses(out, lens, tokens, count).pruned, expected, atol=1e-3, rtol=1e-3)
        model.config.loss.prune_range = 5
        near = model.losses(out, lens, tokens, count).pruned
    assert expected - 1e-3 <= near < 1.5 * expected


def test_checkpoints_and_options_that_do_not_fit_are_refused(saved, tiny_corpus, tmp_path):
    with pytest.raises(UserError, match="parakeet_ctc, which has no predictor and joiner"):
        taken_over(tiny_corpus, saved("parakeet-ctc"))
    for change, said in (
        (dict(model__encoder__kind="frozen"), "kind=frozen"),
        (dict(model__encoder__stack=2), "stack=2"),
        (dict(model__predictor_layers=2, model__predictor_dim=16), "leave out"),
        (dict(tokenizer__model=f"{saved('parakeet-rnnt')}/theirs.model"), "id 0 must be the blank"),
    ):
        with pytest.raises(UserError, match=said):
            taken_over(tiny_corpus, saved("parakeet-rnnt"), **change)
    bundle = taken_over(tiny_corpus, saved("parakeet-rnnt"))
    with pytest.raises(UserError, match="LSTM"):
        search(bundle, [torch.zeros(8000)], options=SearchOptions("k2_fast_beam"))


def run(train_script, corpus, folder, exp_dir, **changes):
    changes = dict(
        model__encoder__name=folder, model__encoder__random_init="false", model__transducer="pretrained",
        training__max_steps=20, training__save_every=20, training__valid_every=20, **changes,
    )  # fmt: skip
    call_ok(train_script.main, *toy_options(corpus, exp_dir, **changes))
    records = [json.loads(line) for line in (exp_dir / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "train"]


def test_a_saved_model_is_loaded_without_the_checkpoint(saved, tiny_corpus, tmp_path, speech):
    bundle = taken_over(tiny_corpus, saved("parakeet-rnnt"))
    folder = TokenVerse(bundle).save_pretrained(tmp_path / "model")
    assert saved("parakeet-rnnt") not in (folder / "config.yaml").read_text()
    loaded = load_model(folder)
    options = SearchOptions("greedy")
    assert [best.tokens for (best,) in search(loaded, speech, options=options)] == [
        best.tokens for (best,) in search(bundle, speech, options=options)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", [*RNNT, "parakeet-tdt"])
def test_trains_decodes_and_loads(family, saved, tiny_corpus, tmp_path, train_script, decode_script, speech):
    """20 steps lower the loss; decode.py, streams and a loaded model give the same."""
    losses = run(train_script, tiny_corpus, saved(family), tmp_path / "exp", optim__encoder_lr=3e-3, optim__lr=3e-3)
    assert len(losses) == 20 and sum(losses[-5:]) < sum(losses[:5])
    words = ["--model", tmp_path / "exp", "--cuts", f"{tiny_corpus}/cuts_test.jsonl.gz"]
    for method in ("greedy", "beam", "full_beam"):
        output = ["--output-dir", tmp_path / method, "--method", method, "--pauses"]
        call_ok(decode_script.main, *words, *output, standalone_mode=True)
        assert len((tmp_path / method / "hyps.jsonl").read_text().splitlines()) == 4
    one, other = load_model(tmp_path / "exp"), load_model(tmp_path / "exp")
    assert one.config.model.predictor_layers == 2 and one.config.model.joiner_activation == "relu"
    found = [search(bundle, speech, options=SearchOptions("beam")) for bundle in (one, other)]
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", RNNT)
def test_an_export_writes_what_torch_writes(saved, tiny_corpus, tmp_path, speech, family, monkeypatch):
    pytest.importorskip("onnxruntime")
    from tokenverse_pp.onnx import graphs
    from tokenverse_pp.onnx.export import export_onnx
    from tokenverse_pp.onnx.runtime import Runtime

    monkeypatch.setitem(graphs.RMS_TOLERANCES, "float32", 1e-3)  # `make_lively` magnifies small differences
    bundle = taken_over(tiny_corpus, saved(family))
    export_onnx(bundle, tmp_path / "onnx")
    runtime, audio = Runtime(tmp_path / "onnx"), [samples.numpy() for samples in speech]
    for options in (SearchOptions("greedy"), SearchOptions("beam")):
        ours, theirs = runtime.search(audio, ["asr"], options), search(bundle, speech, ["asr"], options)
        assert [h[0].tokens for h in ours] == [h[0].tokens for h in theirs] and all(h[0].tokens for h in ours)


@pytest.mark.slow
def test_new_rows_alone_can_be_trained_and_the_run_is_a_start_for_others(saved, tiny_corpus, tmp_path, train_script):
    folder = saved("parakeet-rnnt")
    known, order = read_vocabulary(folder)
    rates = dict(optim__lr=1e-2, optim__encoder_lr=1e-2, model__loss__warm_steps=1)
    losses = run(train_script, tiny_corpus, folder, tmp_path / "exp", training__train_only="new", **rates)
    assert sum(losses[-5:]) < sum(losses[:5])
    trained, theirs = read_tensors(tmp_path / "exp" / "model" / WEIGHTS), read_weights(folder, order)
    for name, value in theirs.items():
        torch.testing.assert_close(trained[name][: len(value)], value)
    assert len(trained["joiner.output.weight"]) > known.vocab_size
    more = dict(tasks__names=["asr", "scd", "endp", "ner", "lid", "punct"], training__init_from=tmp_path / "exp")
    more.update(model__predictor_dim=12, model__joiner_dim=12)  # as given, and not as in the model: those of the toy
    run(train_script, tiny_corpus, folder, tmp_path / "more", **more)
    before, after = load_model(tmp_path / "exp"), load_model(tmp_path / "more")
    assert after.tokenizer.extends(before.tokenizer) and after.config.model.symbols_per_frame == 3
