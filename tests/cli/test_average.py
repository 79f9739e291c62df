"""`tokenverse-pp average` on the checkpoints of a real run."""

import torch
from click.testing import CliRunner

from tokenverse_pp.cli.main import cli
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import load_model


def run(*arguments):
    return CliRunner().invoke(cli, ["average", *map(str, arguments)])


def test_one_checkpoint_stays_what_it_is(finished_run, tmp_path):
    assert run(finished_run, tmp_path / "model").exit_code == 0
    newest = checkpoint.read_tensors(checkpoint.list_checkpoints(finished_run)[-1] / checkpoint.WEIGHTS)
    found = checkpoint.read_tensors(tmp_path / "model" / checkpoint.WEIGHTS)
    assert found.keys() == newest.keys()
    assert all(torch.equal(found[key], newest[key]) for key in found)


def test_half_precision_halves_the_file_and_loads(finished_run, tmp_path):
    for dtype in ("float32", "float16"):
        assert run(finished_run, tmp_path / dtype, "--dtype", dtype).exit_code == 0
    sizes = [(tmp_path / dtype / checkpoint.WEIGHTS).stat().st_size for dtype in ("float16", "float32")]
    assert sizes[0] < 0.55 * sizes[1]
    half, whole = (dict(load_model(tmp_path / dtype).model.named_parameters()) for dtype in ("float16", "float32"))
    assert all(half[key].dtype == torch.float32 for key in half)
    assert all(torch.allclose(half[key], whole[key], rtol=1e-3, atol=1e-6) for key in half)


def test_more_than_there_are(finished_run, tmp_path):
    result = run(finished_run, tmp_path / "model", "--last", 99)
    assert result.exit_code == 2
    assert "99 checkpoints wanted" in result.output + str(getattr(result, "stderr", ""))
    assert not (tmp_path / "model").exists()


def test_running_average_is_asked_for_where_there_is_none(finished_run, tmp_path):
    for last, said in ((1, "--last 2"), (2, "no running average")):
        result = run(finished_run, tmp_path / "model", "--running", "--last", last)
        assert result.exit_code == 2 and said in result.output + str(getattr(result, "stderr", ""))
