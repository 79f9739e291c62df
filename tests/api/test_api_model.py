"""Loading, finding encoders, transcribing and saving: a tiny model with random weights, real files."""

import dataclasses
import gc
import json
import shutil
import types
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_models import write_model
from toy_runs import read_cuts, save_frozen_encoder

from tokenverse_pp.api import folders as locate
from tokenverse_pp.api.formats import FORMATS
from tokenverse_pp.api.model import RecognizerJob, TokenVerse, device_of, known_tasks
from tokenverse_pp.api.transcribing import TranscribeOptions, group_line, transcribe_by_cluster, transcribe_in_order
from tokenverse_pp.base import files
from tokenverse_pp.base.engine import Parts
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.data.audio.inputs import Refused, open_audio
from tokenverse_pp.decoding.long_form import decode_long
from tokenverse_pp.decoding.recognizer import DecodeOptions, Recognizer, decode
from tokenverse_pp.decoding.run import run_digest
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import load_model
from tokenverse_pp.tasks import build_tasks


@pytest.fixture(scope="module")
def frozen(tiny_corpus, tmp_path_factory):
    """A model whose frozen encoder lies elsewhere, and that encoder."""
    where = tmp_path_factory.mktemp("frozen")
    changes = save_frozen_encoder(tiny_corpus, where / "pretrained")
    return write_model(tiny_corpus, where / "model", **changes), where / "pretrained"


def renamed(folder, target, name):
    """A copy of a model whose configuration names its encoder otherwise."""
    shutil.copytree(folder, target)
    config = target / checkpoint.CONFIG
    old = next(line for line in config.read_text().splitlines() if line.startswith("    name: "))
    config.write_text(config.read_text().replace(old, f"    name: {name}"))
    return target


def test_groups_are_shards_that_lose_nothing(model, tiny_corpus, tmp_path):
    """Computed as a worker of a cluster does, and read from part files; every format writes the same."""
    decoder = Recognizer(model.loaded, DecodeOptions(max_duration=2.0))
    items = [open_audio(cut) for cut in read_cuts(tiny_corpus)] + [Refused("a.wav", "a.wav: no such file")]
    parts, started = Parts(tmp_path / "parts"), []

    def start():
        started.append(True)
        return partial(group_line, decoder)

    expected = list(transcribe_in_order(decoder, items))
    for _ in range(2):
        found = list(transcribe_by_cluster(start, items, decoder.options, "run", parts))
        assert found == expected
        for one, other in zip(found[:-1], expected):
            assert one.to_record() == other.to_record()
            assert all(form.write(one) == form.write(other) for form in FORMATS.values())
    parts.close()
    assert len(started) == 1 and len(parts.read()) > 2


def test_a_worker_with_another_model_is_refused(model, model_folder):
    job = RecognizerJob(group_line, model_folder, None, DecodeOptions(), "another", threads=torch.get_num_threads())
    with pytest.raises(UserError, match=r"model, encoder or options: on .* they differ from those on"):
        job()
    digest = run_digest(model.loaded, DecodeOptions())
    found = dataclasses.replace(job, digest=digest, device="cpu")()([Refused("a.wav", "a.wav: none")])
    assert found == {"results": [{"refused": {"label": "a.wav", "reason": "a.wav: none"}}]}


def test_it_hears_what_decode_hears(model, tiny_corpus):
    cuts = read_cuts(tiny_corpus, "test")
    options = DecodeOptions(SearchOptions(force_language=True))
    records = {r["id"]: r for done in decode(model.loaded, cuts, options) for r in done.records}
    found = model.transcribe(iter(cuts))
    assert [heard.name for heard in found] == [cut.id for cut in cuts]
    for heard in found:
        record = records[heard.name]
        assert heard.raw == record["text"] and heard.language == record["language"]
        assert [turn.text for turn in heard.turns] == [turn["text"] for turn in record["turns"]]
        assert [(e.text, e.start, e.end) for e in heard.entities] == [
            (e["text"], e["start"], e["end"]) for e in record["entities"]
        ]
        plain = [word["confidence"] for word in record["words"] if not word["text"].startswith("[")]
        assert [word.confidence for word in heard.words] == plain


def test_a_file_and_its_samples_are_the_same(model, speech):
    path, samples = speech
    heard = model.transcribe(path)
    assert heard.words and heard.name == "speech"
    assert model.transcribe(str(path)) == heard
    assert model.transcribe(samples).raw == heard.raw
    assert [one.raw for one in model.transcribe([samples, path])] == [heard.raw] * 2


def test_long_audio_goes_through_windows(model, speech, tmp_path):
    _, samples = speech
    long = np.tile(samples, 4)
    soundfile.write(tmp_path / "long.wav", long, 16000, subtype="FLOAT")
    search = SearchOptions("greedy", force_language=True)
    expected = decode_long(model.loaded, tmp_path / "long.wav", model.loaded.tasks, search, window=2.5, overlap=0.5)
    options = TranscribeOptions(method="greedy", window=2.5, overlap=0.5)
    for heard in model.transcribe_each([tmp_path / "long.wav", long], options):
        assert heard.duration == pytest.approx(len(long) / 16000, abs=1e-3)
        assert heard.raw == model.loaded.tokenizer.decode(expected.tokens)


def test_tasks_languages_and_hotwords(model, speech):
    path, _ = speech
    assert model.transcribe(path, tasks="lid").tasks == ("asr", "lid")
    plain = model.transcribe(path, tasks=["asr"])
    assert (plain.raw, plain.tasks, plain.marks, plain.language) == (plain.text, ("asr",), (), None)
    for code in model.languages:
        assert model.transcribe(path, language=code).language == code
    word = plain.words[0].text
    assert model.transcribe(path, hotwords=[(word, 2.0)]).words
    with pytest.raises(UserError, match="greedy search knows no bonuses"):
        model.transcribe(path, hotwords=[word], method="greedy")
    with pytest.raises(UserError, match=r"expected a file of phrases, or a list: \['bonjour'\]"):
        model.transcribe(path, hotwords="bonjour")
    with pytest.raises(UserError, match=r"does not write \[FR\]"):
        model.transcribe(path, language="fr")
    with pytest.raises(UserError, match="language: 'qaa' can be forced with the task lid only"):
        model.transcribe(path, language="qaa", tasks=["asr"])
    assert model.transcribe(path, search=SearchOptions("greedy"), beam=2).words
    assert model.entity_types == () and model.languages == ("qaa", "qab") and "ner" in repr(model)


def test_pauses_are_there_for_who_asks(model, speech):
    path, _ = speech
    plain, heard = model.transcribe(path), model.transcribe(path, pauses=True)
    assert plain.pauses is None and heard.words == plain.words
    assert [pause.position for pause in heard.pauses] == list(range(1, len(heard.words) + 1))
    assert model.transcribe([path], pauses=True) == [heard]
    with pytest.raises(UserError, match="need the task endp"):
        model.transcribe(path, tasks=["asr"], pauses=True)


def test_confidences_are_calibrated(model_folder, speech, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    curve = {"a": 1.0, "b": 1.0, "c": 2.0}
    (tmp_path / "model" / "calibration.json").write_text(json.dumps({"words": curve, "tasks": curve}))
    before = TokenVerse.from_pretrained(model_folder).transcribe(speech[0], method="greedy")
    calibrated = TokenVerse.from_pretrained(tmp_path / "model")
    after = calibrated.transcribe(speech[0], method="greedy")
    assert before.raw == after.raw and all(b.confidence < a.confidence for b, a in zip(before.words, after.words))
    saved = calibrated.save_pretrained(tmp_path / "saved")
    assert TokenVerse.from_pretrained(saved).transcribe(speech[0], method="greedy") == after


def test_what_cannot_be_decoded_is_named_and_the_rest_is_done(model, speech, tmp_path):
    (tmp_path / "empty.wav").touch()
    files = [speech[0], tmp_path / "empty.wav", np.full(9, np.nan), speech[0], 7]
    found = list(model.transcribe_each(files, TranscribeOptions(method="greedy")))
    assert [type(one) for one in found] == [type(found[0]), Refused, Refused, type(found[0]), Refused]
    assert found[0] == found[3] and found[1].reason == f"{tmp_path / 'empty.wav'}: the file is empty"
    assert found[2].reason.startswith("audio 3: ") and found[4].label == "audio 5"
    with pytest.raises(UserError, match=r"empty.wav: the file is empty"):
        model.transcribe(files)


def test_no_more_is_opened_than_is_needed(model, speech):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield speech[1]

    results = model.transcribe_each(endless(), TranscribeOptions(method="greedy", batch_seconds=10.0))
    assert next(results).words and len(taken) < 30


def test_a_hundredth_of_a_second_and_many_channels(model):
    heard = model.transcribe([np.zeros(160, np.float32), np.zeros((6, 4000), np.float32)], method="greedy")
    assert [one.duration for one in heard] == [0.01, 0.25]


def test_loading_leaves_the_random_numbers_alone(model_folder):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    TokenVerse.from_pretrained(model_folder)
    assert torch.rand(1) == expected


def test_an_encoder_is_found_in_the_model_then_in_the_working_directory(frozen, tmp_path, monkeypatch):
    folder, encoder = frozen
    by_name = renamed(folder, tmp_path / "model", "parts/enc")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"parts/enc.*say where its encoder is: encoder= \(--encoder\)"):
        TokenVerse.from_pretrained(by_name)
    assert TokenVerse.from_pretrained(by_name, encoder=encoder).tasks
    shutil.copytree(encoder, tmp_path / "parts" / "enc")
    assert locate.locate_encoder("parts/enc", by_name) == "parts/enc"
    assert TokenVerse.from_pretrained(by_name).tasks
    shutil.copytree(encoder, by_name / "parts" / "enc")
    assert locate.locate_encoder("parts/enc", by_name) == str(by_name / "parts" / "enc")
    with pytest.raises(UserError, match=r"expected an encoder as transformers saves it"):
        TokenVerse.from_pretrained(by_name, encoder=tmp_path)


def test_whisper_base_is_made_once_in_the_cache(frozen, tmp_path, monkeypatch):
    folder, encoder = frozen
    model = renamed(folder, tmp_path / "model", "data/whisper-base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENVERSE_PP_CACHE", str(tmp_path / "cache"))
    made = []

    def convert(target):
        made.append(target)
        shutil.copytree(encoder, target, dirs_exist_ok=True)
        return target, True

    monkeypatch.setattr(locate, "convert_whisper_base", convert)
    assert TokenVerse.from_pretrained(model).tasks and made == [tmp_path / "cache" / "whisper-base"]

    def cannot(target):
        raise UserError("package x is not installed: pip install 'tokenverse_pp[human-speech]'")

    monkeypatch.setattr(locate, "convert_whisper_base", cannot)
    with pytest.raises(UserError, match=r"whisper-base: package x is not installed.*or say where it is: encoder"):
        TokenVerse.from_pretrained(model)


def test_the_cache_is_the_platforms_own(monkeypatch):
    for key in ("TOKENVERSE_PP_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(key, raising=False)
    home = Path.home()
    for system, expected in (("linux", ".cache"), ("darwin", "Library/Caches"), ("win32", "AppData/Local")):
        monkeypatch.setattr(files, "sys", types.SimpleNamespace(platform=system))
        assert files.cache_folder() == home / expected / "tokenverse_pp"
    monkeypatch.setenv("XDG_CACHE_HOME", "elsewhere")
    monkeypatch.setattr(files, "sys", types.SimpleNamespace(platform="linux"))
    assert files.cache_folder() == Path("elsewhere/tokenverse_pp")


def test_the_model_of_the_package_is_there():
    folder = locate.locate_model(locate.DEFAULT)
    assert {checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.TOKENIZER, "README.md"} <= {
        p.name for p in folder.iterdir()
    }
    assert {"asr", "scd", "endp", "ner", "lid"} <= set(known_tasks().names)


@pytest.mark.parametrize("include", [False, True])
def test_a_frozen_encoder_is_named_or_put_in(frozen, speech, tmp_path, include):
    folder, encoder = frozen
    model = TokenVerse.from_pretrained(folder)
    heard = model.transcribe(speech[0], method="greedy")
    saved = model.save_pretrained(tmp_path / "deep" / "saved", include_encoder=include)
    assert (saved / "encoder" / "config.json").is_file() == include
    assert str(encoder) not in (saved / "config.yaml").read_text() or not include
    moved = saved.rename(tmp_path / "moved")
    assert TokenVerse.from_pretrained(moved).transcribe(speech[0], method="greedy") == heard
    if include:  # decode.py, which knows no cache, finds it there too
        assert Path(load_model(moved).config.model.encoder.name) == moved / "encoder"
    again = TokenVerse.from_pretrained(moved)  # written over itself
    assert (
        TokenVerse.from_pretrained(again.save_pretrained(moved, include)).transcribe(speech[0], method="greedy")
        == heard
    )


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
def test_an_encoder_that_is_partly_frozen_is_named_or_put_in(tiny_corpus, speech, tmp_path, rank, include):
    if rank:
        pytest.importorskip("peft")
    changes = save_frozen_encoder(tiny_corpus, tmp_path / "pretrained")
    changes.update(model__encoder__kind="split", model__encoder__split_layer=1, model__encoder__lora_rank=rank)
    model = TokenVerse.from_pretrained(write_model(tiny_corpus, tmp_path / "model", **changes))
    saved = model.save_pretrained(tmp_path / "saved", include_encoder=include)
    assert bool(list((saved / "encoder").glob("*.safetensors"))) == include
    again = TokenVerse.from_pretrained(saved)
    for name, weights in model.loaded.model.state_dict().items():
        assert torch.equal(again.loaded.model.state_dict()[name], weights), name
    heard = model.transcribe(speech[0], method="greedy")
    assert again.transcribe(speech[0], method="greedy") == heard


def test_a_trained_encoder_needs_no_weights_beside_it(model, speech, tmp_path):
    saved = model.save_pretrained(tmp_path / "saved", half=True)
    assert [path.name for path in (saved / "encoder").glob("*.safetensors")] == []
    size = (saved / checkpoint.WEIGHTS).stat().st_size
    full = model.save_pretrained(tmp_path / "full") / checkpoint.WEIGHTS
    assert 1.5 < full.stat().st_size / size < 2.1
    assert TokenVerse.from_pretrained(saved).transcribe(speech[0], method="greedy").duration > 1
    config = (saved / "config.yaml").read_text()
    assert "\ndata:" not in config and "\ntraining:" not in config and "name: encoder\n" in config
    assert "- qaa" in (saved / "README.md").read_text()


def test_nothing_but_a_model_is_replaced(model, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"mine: expected a new or empty folder or a model, found thesis.txt"):
        model.save_pretrained(tmp_path / "mine")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        model.save_pretrained(tmp_path / "file" / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]


def test_a_model_is_saved_whole_or_not_at_all(model, tmp_path, monkeypatch):
    saved = model.save_pretrained(tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in saved.iterdir() if path.is_file()}

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(UserError, match=r"saved: cannot be written: No space left on device"):
        model.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir() if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_models_that_are_none(model_folder, tiny_corpus, tmp_path):
    def damaged(name, change):
        folder = tmp_path / name
        shutil.copytree(model_folder, folder)
        change(folder)
        return folder

    def add_key(folder):
        (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + "\nmagic: 1\n")

    def cut_short(folder):
        data = (folder / checkpoint.WEIGHTS).read_bytes()
        (folder / checkpoint.WEIGHTS).write_bytes(data[:-9])

    def other_vocabulary(folder):
        other = write_model(tiny_corpus, tmp_path / "other", tokenizer__vocab_size=45)
        (folder / checkpoint.TOKENIZER).write_bytes((other / checkpoint.TOKENIZER).read_bytes())
        (folder / checkpoint.CHECKSUMS).unlink()

    def of_transformers(folder):
        (folder / checkpoint.CONFIG).rename(folder / "config.json")

    def exported(folder):
        (folder / checkpoint.WEIGHTS).rename(folder / "export.json")

    (tmp_path / "nothing").mkdir()
    expected = [
        (tmp_path / "gone", "no such folder, nor a model of the package"),
        (tmp_path / "nothing", "no model here"),
        (model_folder / checkpoint.WEIGHTS, "is a file, expected a model folder"),
        ("some/model", "the Hugging Face hub cannot be reached"),
        (damaged("newer", add_key), "unknown key magic: was it made by another version of tokenverse_pp"),
        (damaged("short", cut_short), "damaged"),
        (damaged("words", other_vocabulary), "does not fit the model: tensor"),
        (damaged("no-tokens", lambda f: (f / checkpoint.TOKENIZER).unlink()), "no such tokenizer model"),
        (damaged("no-config", lambda f: (f / checkpoint.CONFIG).unlink()), "no such configuration"),
        (damaged("whisper", of_transformers), "a transformers model, which can be the encoder"),
        (damaged("onnx", exported), "an export, which runs without torch"),
    ]
    for model, said in expected:
        with pytest.raises(UserError, match=said) as caught:
            TokenVerse.from_pretrained(model)
        assert "\n" not in str(caught.value)


def test_devices(model_folder):
    assert device_of("cpu").type == "cpu" and TokenVerse.from_pretrained(model_folder, device="cpu").to("cpu").tasks
    for name in ("abacus", "cuda:77"):
        with pytest.raises(UserError, match=f"device '{name}': cannot be used"):
            device_of(name)


def test_the_hub_is_asked_for_a_models_files_only(model_folder, monkeypatch):
    asked = {}

    def download(repository, **options):
        asked.update(options, repository=repository)
        return str(model_folder)

    monkeypatch.setattr(locate, "hub_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert TokenVerse.from_pretrained("some/model", revision="v2").tasks
    assert (asked["repository"], asked["revision"], asked["local_files_only"]) == ("some/model", "v2", False)
    assert checkpoint.WEIGHTS in asked["allow_patterns"]


def test_the_hub_gets_what_is_saved(model, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, repository, **options):
            calls.append((repository, options))

        def upload_folder(self, repo_id, folder_path):
            calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
            return "address"

    with pytest.raises(UserError, match="cannot be reached"):
        model.push_to_hub("me/model")
    monkeypatch.setattr("tokenverse_pp.models.encoders.kinds.hub_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert model.push_to_hub("me/model", private=True) == "address"
    assert calls[0] == ("me/model", {"private": True, "exist_ok": True})
    assert {"config.yaml", "model.safetensors", "README.md"} <= set(calls[1][1])


def test_the_model_of_the_package_has_its_former_name_too():
    assert locate.locate_model("human-speech-small") == locate.locate_model("human-speech")
    assert set(locate.RENAMED.values()) <= set(locate.PACKAGED) and not set(locate.RENAMED) & set(locate.PACKAGED)


def test_the_card_of_a_model_names_norwegian(model):
    tasks = build_tasks(["asr", "lid"], {"lid": {"languages": ["no", "fr"]}})
    card = locate.model_card(dataclasses.replace(model.loaded, tasks=tasks), "encoder", True)
    assert yaml.safe_load(card.split("---")[1])["language"] == ["no", "fr"]


def test_a_recognizer_that_is_kept_keeps_no_audio(model):
    decoder = Recognizer(model.loaded, DecodeOptions(SearchOptions("greedy")))
    items = [open_audio(np.zeros(16000, dtype=np.float32))]
    audio = weakref.ref(items[0].cut)
    assert len(list(transcribe_in_order(decoder, items, lambda *_: None, lambda *_: None))) == 1
    items.clear()
    gc.collect()
    assert audio() is None
