"""recipes/human_speech/mix_models.py: the mean of a model and one that was trained on from it."""

import dataclasses

import click.testing
import pytest
import torch
import yaml
from scripts import ROOT, load_script
from tiny_models import write_model

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import build_model, load_model, tasks_of


@pytest.fixture(scope="module")
def mix_models():
    return load_script(ROOT / "recipes" / "human_speech" / "mix_models.py", "human_speech_mix_models")


@pytest.fixture(scope="module", params=["binary", "centred"])
def models(request, tiny_corpus, tmp_path_factory):
    """A model, and another one with its tasks and tokens and those of punct."""
    folder = tmp_path_factory.mktemp(request.param)
    before = load_model(write_model(tiny_corpus, folder / "before", model__vectors__code=request.param))
    config = dataclasses.replace(before.config)
    config.tasks = dataclasses.replace(config.tasks, names=[*config.tasks.names, "punct"])
    tasks = tasks_of(config.tasks)
    tokenizer = before.tokenizer.extended(tasks.symbols)
    model = build_model(config, tasks, tokenizer)
    with torch.no_grad():
        model.feature_vectors.table.normal_()
    texts = {
        checkpoint.CONFIG: yaml.safe_dump(dataclasses.asdict(config)).encode(),
        checkpoint.TOKENIZER: tokenizer.model,
    }
    checkpoint.write_folder(folder / "after", {checkpoint.WEIGHTS: model.checkpoint_state()}, texts)
    return folder / "before", folder / "after"


def run(mix_models, *words):
    return click.testing.CliRunner().invoke(mix_models.main, [str(word) for word in words])


def test_the_ends_are_the_two_models(mix_models, models, tmp_path):
    for share, folder in ((0, models[0]), (1, models[1])):
        out = tmp_path / str(share)
        assert run(mix_models, *models, "--share", share, "--output-dir", out).exit_code == 0
        found, expected = load_model(out), load_model(folder)
        audio, lens = torch.randn(1, 16000) * 0.1, torch.tensor([16000])
        active = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0]])  # punct is off
        rows = torch.nn.functional.pad(active, (0, len(expected.tasks.names) - 5))
        with torch.no_grad():
            frames, _ = found.model.eval().encode(audio, lens, active)
            theirs, _ = expected.model.eval().encode(audio, lens, rows)
            torch.testing.assert_close(frames, theirs, atol=1e-4, rtol=1e-4)
            state = torch.randn(1, found.config.model.joiner_dim)
            logits = [m.model.joiner(m.model.joiner.encoder_proj(theirs[0]), state) for m in (found, expected)]
        torch.testing.assert_close(logits[0], logits[1][:, : found.tokenizer.vocab_size])


def test_a_share_between_is_the_mean(mix_models, models):
    ends = [mix_models.mix(*models, share) for share in (0.0, 1.0)]
    for name, tensor in mix_models.mix(*models, 0.25).items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.75 * ends[0][name] + 0.25 * ends[1][name])


def test_models_that_do_not_continue_each_other_are_refused(mix_models, models, tmp_path):
    with pytest.raises(UserError, match="expected the tasks and tokens of"):
        mix_models.mix(models[1], models[0], 0.5)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    done = run(mix_models, *models, "--output-dir", tmp_path / "out")
    assert isinstance(done.exception, UserError) and "expected a new or empty folder" in str(done.exception)
