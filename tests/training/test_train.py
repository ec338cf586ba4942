"""The recipe at toy size: it learns, resumes, and exports weights that the engine loads."""

import math

import pytest
import torch

from fimserver.cards import MODELS, get_card
from fimserver.engine.load import load
from models.training.rows import RowStream
from models.training.shape import Shape
from models.training.train import Progress, Recipe, Run, Trainer
from tests.training.test_rows import CODE, MAKER

SHAPE = Shape(hidden=32, layers=1, heads=1, kv_heads=1, mlp=48)
RECIPE = Recipe(rows=2, warmup_steps=2)


def make_run(folder):
    stream = RowStream([CODE], MAKER, seed=1)
    folder.mkdir(parents=True, exist_ok=True)
    return Run(Trainer(SHAPE, RECIPE, "cpu", eager=True), stream, [stream.batch(0, 2)], folder)


def test_a_resumed_run_is_an_unbroken_run(tmp_path):
    whole = make_run(tmp_path / "whole")
    for _ in range(4):
        whole.one_step(1.0)
    first = make_run(tmp_path / "parts")
    for _ in range(2):
        first.one_step(1.0)
    first.checkpoint()
    second = make_run(tmp_path / "parts")
    second.progress = second.trainer.load(tmp_path / "parts" / "checkpoint")
    assert second.progress == first.progress
    for _ in range(2):
        second.one_step(1.0)
    for ours, theirs in zip(second.trainer.model.parameters(), whole.trainer.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_it_learns_and_logs(tmp_path):
    run = make_run(tmp_path)
    before = run.trainer.validate(run.valid)
    for _ in range(12):
        run.one_step(1.0)
    run.checkpoint()
    after = run.trainer.validate(run.valid)
    assert all(after[name] < before[name] for name in before)
    assert '"valid_canvas"' in (tmp_path / "log.jsonl").read_text()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run = make_run(tmp_path)
    with torch.no_grad():
        next(run.trainer.model.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        run.one_step(1.0)
    assert run.progress == Progress()


def test_what_is_exported_loads_in_the_engine(tmp_path):
    run = make_run(tmp_path / "run")
    folder = tmp_path / "export"
    run.trainer.export(folder)
    (folder / "tokenizer.json").write_bytes((MODELS / "nano" / "tokenizer.json").read_bytes())
    loaded = load(get_card("nano").model_copy(update={"files": {}}), folder, torch.device("cpu"))
    assert loaded.model.config.num_hidden_layers == 1
    again = make_run(tmp_path / "again")
    again.trainer.start_from(folder)
    for ours, theirs in zip(again.trainer.model.parameters(), run.trainer.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
