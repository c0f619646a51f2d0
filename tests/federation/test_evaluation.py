"""Accuracy, loss and attack success rates of a model, against plain loops."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedsieve.core.attack import Triggered
from fedsieve.federation.clients import ClientData
from fedsieve.federation.evaluation import Scores, evaluate
from fedsieve.models.flat import FlatModel
from tests.federation.conftest import federation, made


@pytest.mark.parametrize(("name", "size"), [("mlp", 7), ("cnn", 130), ("batchnorm", 5)])  # the second in two batches
def test_equals_a_plain_loop(name: str, size: int) -> None:
    module, shape = made(name)
    model, params = FlatModel.of(module)
    test = federation(shape, {0: size})[0]
    logits = module.eval()(test.x).detach()
    hits = [int(row.argmax()) == label for row, label in zip(logits, test.y.tolist(), strict=True)]
    wanted = torch.full((size,), int(logits[0].argmax()))
    already = test.y == wanted[0]
    scores = evaluate(model, params, test, Triggered(test.x, wanted, already))
    assert scores.accuracy == pytest.approx(sum(hits) / size)
    assert scores.loss == pytest.approx(float(cross_entropy(logits, test.y)))
    reached = (logits.argmax(dim=1) == wanted).double()
    assert scores.attack_success_rate == pytest.approx(float(reached[~already].mean()))
    assert scores.attack_success_rate_all == pytest.approx(float(reached.mean()))
    without = evaluate(model, params, test, None)
    assert without == Scores(scores.accuracy, scores.loss)
    assert without.attack_success_rate is None


def test_a_loss_that_is_not_finite_is_none() -> None:
    module, shape = made("mlp")
    model, params = FlatModel.of(module)
    scores = evaluate(model, torch.full_like(params, torch.nan), federation(shape, {0: 6})[0], None)
    assert scores.loss is None
    assert scores.accuracy is not None


def test_no_sample_no_rate() -> None:
    module, shape = made("mlp")
    model, params = FlatModel.of(module)
    test = federation(shape, {0: 6})[0]
    all_already = Triggered(test.x, test.y, torch.ones(6, dtype=torch.bool))
    assert evaluate(model, params, test, all_already).attack_success_rate is None
    assert evaluate(model, params, ClientData(test.x[:0], test.y[:0]), None).accuracy is None
