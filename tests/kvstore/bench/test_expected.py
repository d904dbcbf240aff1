from __future__ import annotations

import numpy as np
import pytest

import kvstore
from kvstore.bench.expected import ADAM_RATE, MOMENTUM, RATE, THRESHOLD, Model, WrongValue
from kvstore.bench.peers.run import PERIOD, table
from kvstore.compression import Feedback
from kvstore.compression import create as create_codec

SIZE = 2 * PERIOD + 7
RULES = {
    "none": None,
    "sgd": ("sgd", {"learning_rate": RATE}),
    "mom": ("sgd", {"learning_rate": RATE, "momentum": MOMENTUM}),
    "adam": ("adam", {"learning_rate": ADAM_RATE}),
}


def gradient(scale: float, mark: float) -> np.ndarray:
    values = np.resize(table(), SIZE)
    values[0] = mark
    return values * np.float32(scale)


@pytest.mark.parametrize("server", RULES)
def test_the_model_is_what_a_store_holds(server: str) -> None:
    scales = [1.0, 2.0, 3.0]
    model, store = Model(server, scales, in_step=True), kvstore.create("local")
    store.init("w", np.zeros(SIZE, np.float32))
    if rule := RULES[server]:
        store.set_optimizer(kvstore.optimizer.create(rule[0], **rule[1]))
    for mark in (1.0, 2.0, 3.0, 4.0):
        model.step(mark)
        store.push("w", [gradient(scale, mark) for scale in scales])
        model.compare([store.pull("w")], whole=True)


def test_without_step_pushes_are_applied_one_by_one() -> None:
    model, store = Model("adam", [1.0, 1.0], in_step=False), kvstore.create("local")
    store.init("w", np.zeros(SIZE, np.float32))
    store.set_optimizer(kvstore.optimizer.create("adam", learning_rate=ADAM_RATE))
    for _ in range(3):
        model.step(1.0)
        store.push("w", gradient(1, 1))
        store.push("w", gradient(1, 1))
    model.compare([store.pull("w")], whole=True)


def test_the_model_feeds_errors_back_as_a_codec_does() -> None:
    codec, _ = create_codec({"type": "2bit", "threshold": THRESHOLD})
    assert codec is not None
    scales = [1.0, 2.0]
    model, feedbacks = Model("2bit", scales, in_step=True), [Feedback((SIZE,)) for _ in scales]
    for mark in (1.0, 2.0, 3.0):
        model.step(mark)
        total = np.zeros(SIZE, np.float32)
        for feedback, scale in zip(feedbacks, scales, strict=True):
            [code] = feedback.encode(codec, gradient(scale, mark), None, 0)
            total += codec.decode(code, SIZE, 0)
        model.compare([total], whole=True)


@pytest.mark.parametrize("at", [0, 1, PERIOD, SIZE - 1])
def test_one_wrong_element_is_found(at: int) -> None:
    model = Model("none", [1.0], in_step=True)
    model.step(1.0)
    value = gradient(1, 1)
    model.compare([gradient(1, 1), value], whole=True)
    value[at] += 1
    where = "first elements by key, element 1" if at == 0 else f"key 1, element {at}"
    with pytest.raises(WrongValue, match=f"{where}: got"):
        model.compare([gradient(1, 1), value], whole=True)


def test_the_value_of_the_last_round_is_wrong() -> None:
    model = Model("none", [1.0], in_step=True)
    model.step(2.0)
    with pytest.raises(WrongValue):
        model.compare([gradient(1, 1)], whole=False)
