"""Each optimizer against a slow reference, one element and one Python float at a time, written from the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kvstore.optimizer.elementwise as elementwise
from kvstore.bfloat16 import bfloat16, from_float32, to_float32
from kvstore.optimizer import FactorScheduler, Optimizer, Updater, create, registered

STEPS = 7
COMMON: dict[str, Any] = {"rescale_grad": 0.5, "wd": 0.1, "clip_gradient": 0.6}


def clip(x: float, limit: float | None) -> float:
    return x if limit is None or limit <= 0 else max(-limit, min(limit, x))


class Reference:
    """One element: ``w``, its slots ``s`` (0 when new), and the hyper-parameters ``p``."""

    def __init__(self, w: float, rule: Callable[..., None], **p: Any) -> None:
        self.w, self.rule, self.s, self.t = w, rule, dict.fromkeys(("m", "v", "a"), 0.0), 0
        self.p = {"rescale_grad": 1.0, "wd": 0.0, "clip_gradient": None, **p}

    def update(self, g: float, lr: float, wd: float) -> None:
        self.t += 1
        self.rule(self, g * self.p["rescale_grad"], lr, wd, self.p["clip_gradient"], self.s, self.p)


def sgd(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    s["m"] = p.get("momentum", 0.0) * s["m"] - lr * (clip(g, c) + wd * e.w)
    e.w += s["m"]


def nag(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    mom = p.get("momentum", 0.0)
    m1 = mom * s["m"]
    e.w = e.w + mom * m1 - (mom + 1) * lr * (clip(g, c) + wd * e.w)
    s["m"] = m1 - lr * (clip(g, c) + wd * e.w)


def adam(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    b1, b2, eps = p.get("beta1", 0.9), p.get("beta2", 0.999), p.get("epsilon", 1e-8)
    d = clip(g + wd * e.w, c)
    s["m"] = b1 * s["m"] + (1 - b1) * d
    s["v"] = b2 * s["v"] + (1 - b2) * d * d
    e.w -= lr * math.sqrt(1 - b2**e.t) / (1 - b1**e.t) * s["m"] / (math.sqrt(s["v"]) + eps)


def adagrad(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    d = clip(g, c)
    s["v"] += d * d
    e.w -= lr * (d / math.sqrt(s["v"] + p.get("eps", 1e-7)) + wd * e.w)


def rmsprop(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    g1, g2, eps = p.get("gamma1", 0.9), p.get("gamma2", 0.9), p.get("epsilon", 1e-8)
    d = clip(g + wd * e.w, c)
    s["v"] = (1 - g1) * d * d + g1 * s["v"]
    if p.get("centered"):
        s["a"] = (1 - g1) * d + g1 * s["a"]
        s["m"] = g2 * s["m"] - lr * d / math.sqrt(s["v"] - s["a"] ** 2 + eps)
        e.w += s["m"]
    else:
        e.w -= lr * d / math.sqrt(s["v"] + eps)
    e.w = clip(e.w, p.get("clip_weights"))


def ftrl(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    l1, beta = p.get("lamda1", 0.01), p.get("beta", 1.0)
    d = clip(g, c)
    z, n = s["m"], s["v"]
    z += d - (math.sqrt(n + d * d) - math.sqrt(n)) * e.w / lr
    n += d * d
    e.w = (math.copysign(l1, z) - z) / ((beta + math.sqrt(n)) / lr + wd) if abs(z) > l1 else 0.0
    s["m"], s["v"] = z, n


def adamw(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    d = clip(g, c)
    s["m"] = 0.9 * s["m"] + 0.1 * d
    s["v"] = 0.999 * s["v"] + 0.001 * d * d
    a = lr * math.sqrt(1 - 0.999**e.t) / (1 - 0.9**e.t) if p.get("correct_bias", True) else lr
    e.w -= a * (s["m"] / (math.sqrt(s["v"]) + 1e-6) + wd * e.w)


def adabelief(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    b1, b2, eps = p.get("beta1", 0.9), p.get("beta2", 0.999), p.get("epsilon", 1e-6)
    d = clip(g + wd * e.w, c)
    s["m"] = b1 * s["m"] + (1 - b1) * d
    s["v"] = b2 * s["v"] + (1 - b2) * (d - s["m"]) ** 2 + eps
    a = lr * math.sqrt(1 - b2**e.t) / (1 - b1**e.t) if p.get("correct_bias", True) else lr
    e.w -= a * s["m"] / (math.sqrt(s["v"]) + eps)


def adamax(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    b1, b2 = p.get("beta1", 0.9), p.get("beta2", 0.999)
    d = clip(g + wd * e.w, c)
    s["m"] = b1 * s["m"] + (1 - b1) * d
    s["v"] = max(b2 * s["v"], abs(d))
    e.w -= lr / (1 - b1**e.t) * s["m"] / s["v"]


def nadam(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    b1, b2, eps = p.get("beta1", 0.9), p.get("beta2", 0.999), p.get("epsilon", 1e-8)
    now, then = (b1 * (1 - 0.5 * 0.96 ** (t * p.get("schedule_decay", 0.004))) for t in (e.t, e.t + 1))
    s["a"] = now * (s["a"] if e.t > 1 else 1)
    d = clip(g + wd * e.w, c)
    s["m"] = b1 * s["m"] + (1 - b1) * d
    s["v"] = b2 * s["v"] + (1 - b2) * d * d
    bar = (1 - now) * d / (1 - s["a"]) + then * s["m"] / (1 - s["a"] * then)
    e.w -= lr * bar / (math.sqrt(s["v"] / (1 - b2**e.t)) + eps)


def adadelta(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    rho, eps = p.get("rho", 0.9), p.get("epsilon", 1e-5)
    d = clip(g, c)
    s["v"] = rho * s["v"] + (1 - rho) * d * d
    delta = math.sqrt(s["a"] + eps) / math.sqrt(s["v"] + eps) * d
    s["a"] = rho * s["a"] + (1 - rho) * delta * delta
    e.w -= delta + wd * e.w


def ftml(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    b1, b2, eps = p.get("beta1", 0.6), p.get("beta2", 0.999), p.get("epsilon", 1e-8)
    d = clip(g + wd * e.w, c)
    s["v"] = b2 * s["v"] + (1 - b2) * d * d
    new = (1 - b1**e.t) / lr * (math.sqrt(s["v"] / (1 - b2**e.t)) + eps)
    s["m"] = b1 * s["m"] + (1 - b1) * d - (new - b1 * s["a"]) * e.w
    e.w, s["a"] = -s["m"] / new, new


def signum(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    mom, wd_lh = p.get("momentum", 0.9), p.get("wd_lh", 0.0)
    if mom == 0:
        e.w = (1 - lr * (wd + wd_lh)) * e.w - lr * math.copysign(1, g)
        return
    s["m"] = mom * s["m"] - (1 - mom) * (clip(g, c) + wd * e.w)
    e.w = (1 - lr * wd_lh) * e.w + lr * math.copysign(1, s["m"])


def dcasgd(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    d, previous = clip(g, c), s.get("previous", e.w)
    s["m"] = p.get("momentum", 0.0) * s["m"] - lr * (d + wd * e.w + p.get("lamda", 0.04) * d * d * (e.w - previous))
    s["previous"] = e.w
    e.w += s["m"]


def adds(e: Reference, g: float, lr: float, wd: float, c: float, s: dict[str, float], p: dict[str, Any]) -> None:
    e.w += g


# name, rule, learning rate by default, arguments
CASES: list[tuple[str, Callable[..., None], float, dict[str, Any]]] = [
    ("sgd", sgd, 0.01, {}),
    ("sgd", sgd, 0.01, COMMON),
    ("sgd", sgd, 0.01, {"momentum": 0.9, **COMMON}),
    ("nag", nag, 0.01, COMMON),
    ("nag", nag, 0.01, {"momentum": 0.9}),
    ("nag", nag, 0.01, {"momentum": 0.9, **COMMON}),
    ("adam", adam, 0.001, {}),
    ("adam", adam, 0.001, COMMON),
    ("adam", adam, 0.001, {"beta1": 0.5, "beta2": 0.8, "epsilon": 1e-3, **COMMON}),
    ("adagrad", adagrad, 0.01, {}),
    ("adagrad", adagrad, 0.01, {"eps": 1e-2, **COMMON}),
    ("rmsprop", rmsprop, 0.001, {}),
    ("rmsprop", rmsprop, 0.001, COMMON),
    ("rmsprop", rmsprop, 0.001, {"centered": True}),
    ("rmsprop", rmsprop, 0.001, {"gamma1": 0.7, "gamma2": 0.5, "epsilon": 1e-4, "centered": True, **COMMON}),
    ("rmsprop", rmsprop, 0.001, {"clip_weights": 0.8, **COMMON}),
    ("ftrl", ftrl, 0.1, {}),
    ("ftrl", ftrl, 0.1, {"lamda1": 0.3, "beta": 0.5, **COMMON}),
    ("test", adds, 0.01, {"rescale_grad": 0.5}),
    ("ccsgd", sgd, 0.01, {"momentum": 0.9, **COMMON}),
    ("adamw", adamw, 0.001, {}),
    ("adamw", adamw, 0.001, COMMON),
    ("adamw", adamw, 0.001, {"correct_bias": False, **COMMON}),
    ("adabelief", adabelief, 0.001, {}),
    ("adabelief", adabelief, 0.001, COMMON),
    ("adabelief", adabelief, 0.001, {"beta1": 0.5, "beta2": 0.8, "epsilon": 1e-3, "correct_bias": False, **COMMON}),
    ("adamax", adamax, 0.002, {}),
    ("adamax", adamax, 0.002, {"beta1": 0.5, "beta2": 0.8, **COMMON}),
    ("nadam", nadam, 0.001, {}),
    ("nadam", nadam, 0.001, {"beta1": 0.5, "beta2": 0.8, "epsilon": 1e-3, "schedule_decay": 0.3, **COMMON}),
    ("adadelta", adadelta, 0.01, {}),
    ("adadelta", adadelta, 0.01, {"rho": 0.7, "epsilon": 1e-3, **COMMON}),
    ("ftml", ftml, 0.01, {}),
    ("ftml", ftml, 0.01, {"beta1": 0.5, "beta2": 0.8, "epsilon": 1e-3, **COMMON}),
    ("signum", signum, 0.01, {}),
    ("signum", signum, 0.01, {"momentum": 0.5, "wd_lh": 0.2, **COMMON}),
    ("signum", signum, 0.01, {"momentum": 0, "wd_lh": 0.2, **COMMON}),
    ("dcasgd", dcasgd, 0.01, {}),
    ("dcasgd", dcasgd, 0.01, {"lamda": 0.5, **COMMON}),
    ("dcasgd", dcasgd, 0.01, {"momentum": 0.9, "lamda": 0.5, **COMMON}),
]


def case_id(value: Any) -> str:
    return value if isinstance(value, str) else ("-".join(value) or "defaults") if isinstance(value, dict) else ""


def data(dtype: str) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    random = np.random.default_rng(7)
    return random.normal(size=(3, 5)).astype(dtype), [
        random.normal(scale=1.5, size=(3, 5)).astype(dtype) for _ in range(STEPS)
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize(("name", "rule", "lr", "arguments"), CASES, ids=case_id)
def test_formula(
    name: str, rule: Callable[..., None], lr: float, arguments: dict[str, Any], dtype: str, tolerance: float
) -> None:
    weight, grads = data(dtype)
    elements = [Reference(float(w), rule, **arguments) for w in weight.flat]
    updater = Updater(create(name, **arguments))
    for grad in grads:
        updater("w", grad, weight)
        for element, g in zip(elements, grad.flat, strict=True):
            element.update(float(g), lr, arguments.get("wd", 0.0))
    expected = np.array([element.w for element in elements]).reshape(weight.shape)
    np.testing.assert_allclose(weight, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "rule", "lr", "arguments"), CASES, ids=case_id)
def test_multipliers_and_a_schedule(name: str, rule: Callable[..., None], lr: float, arguments: dict[str, Any]) -> None:
    weight, grads = data("float64")
    elements = [Reference(float(w), rule, **arguments) for w in weight.flat]
    optimizer = create(name, lr_scheduler=FactorScheduler(2, 0.5, base_lr=0.2), **arguments)
    optimizer.set_lr_mult({"w": 0.25})
    optimizer.set_wd_mult({"w": 3})
    updater = Updater(optimizer)
    for count, grad in enumerate(grads):
        updater("w", grad, weight)
        for element, g in zip(elements, grad.flat, strict=True):
            element.update(float(g), 0.2 * 0.5 ** (count // 2) * 0.25, arguments.get("wd", 0.0) * 3)
    expected = np.array([element.w for element in elements]).reshape(weight.shape)
    np.testing.assert_allclose(weight, expected, rtol=1e-12, atol=1e-12)


# -- pieces, blocks and precision -------------------------------------------------------------------------------------


def train(
    optimizer: Optimizer, weight: np.ndarray[Any, Any], grads: list[np.ndarray[Any, Any]]
) -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
    weight = weight.copy()
    state = optimizer.create_state("w", weight)
    for count, grad in enumerate(grads, 1):
        optimizer.update("w", weight, grad, state, count)
    return weight, state


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("name", "rule", "lr", "arguments"), CASES, ids=case_id)
def test_blocks_and_pieces_do_not_change_a_bit(
    name: str,
    rule: Callable[..., None],
    lr: float,
    arguments: dict[str, Any],
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(3)
    weight = random.normal(size=101).astype(dtype)
    grads = [random.normal(size=101).astype(dtype) for _ in range(3)]
    optimizer = create(name, **arguments)
    assert optimizer.elementwise
    whole, state = train(optimizer, weight, grads)
    monkeypatch.setattr(elementwise, "BLOCK", 7)
    blocked, blocked_state = train(optimizer, weight, grads)
    assert blocked.tobytes() == whole.tobytes()
    assert {n: s.tobytes() for n, s in blocked_state.items()} == {n: s.tobytes() for n, s in state.items()}
    pieces = [train(optimizer, weight[part], [g[part] for g in grads]) for part in (slice(0, 38), slice(38, None))]
    assert b"".join(piece.tobytes() for piece, _ in pieces) == whole.tobytes()
    for slot in state:
        assert b"".join(piece_state[slot].tobytes() for _, piece_state in pieces) == state[slot].tobytes()


@pytest.mark.parametrize(("name", "rule", "lr", "arguments"), CASES, ids=case_id)
def test_the_gradient_is_not_written_and_any_strides_do(
    name: str, rule: Callable[..., None], lr: float, arguments: dict[str, Any]
) -> None:
    weight, grads = data("float32")
    expected, _ = train(create(name, **arguments), weight, grads)
    for grad in grads:
        grad.flags.writeable = False
    strided = np.zeros((5, 6), np.float32)[:, ::2].T
    strided[...] = weight
    updater = Updater(create(name, **arguments))
    for grad in grads:
        updater(0, grad, strided)
    assert strided.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("name", "rule", "lr", "arguments"), CASES, ids=case_id)
def test_half_precision_is_computed_in_float32(
    name: str, rule: Callable[..., None], lr: float, arguments: dict[str, Any]
) -> None:
    weight, grads = data("float16")
    optimizer = create(name, **arguments)
    state = optimizer.create_state("w", weight)
    assert all(slot.dtype == np.float16 and slot.shape == weight.shape for slot in state.values())
    optimizer.update("w", weight, grads[0], state, 1)
    wide = data("float16")[0].astype(np.float32)
    wide_state = optimizer.create_state("w", wide)
    optimizer.update("w", wide, grads[0].astype(np.float32), wide_state, 1)
    assert weight.tobytes() == wide.astype(np.float16).tobytes()
    assert {n: s.tobytes() for n, s in state.items()} == {
        n: s.astype(np.float16).tobytes() for n, s in wide_state.items()
    }


@pytest.mark.parametrize(("name", "rule", "lr", "arguments"), CASES, ids=case_id)
def test_bfloat16_is_computed_in_float32_with_float32_state(
    name: str, rule: Callable[..., None], lr: float, arguments: dict[str, Any]
) -> None:
    weight, grads = data("float32")
    bits, optimizer = from_float32(weight), create(name, **arguments)
    state = optimizer.create_state("w", bfloat16(bits))
    assert all(slot.dtype == np.float32 for slot in state.values())
    wide = to_float32(bits)
    optimizer.update("w", bfloat16(bits), bfloat16(from_float32(grads[0])), state, 1)
    optimizer.update("w", wide, to_float32(from_float32(grads[0])), optimizer.create_state("w", wide), 1)
    assert bits.tobytes() == from_float32(wide).tobytes()


@pytest.mark.parametrize("name", registered())
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_infinities_and_nans_reach_the_weights_without_warnings(name: str, dtype: str) -> None:
    weight = np.ones((3, 1), dtype)
    updater = Updater(create(name))
    for values in ([np.inf, np.nan, 60000], [0, 0, 0], [-np.inf, 1, 1e-8]):
        updater(0, np.array(values, dtype)[:, None], weight)
    assert np.isnan(weight[1])


@pytest.mark.parametrize("name", ["adam", "adamax", "ftml", "ftrl", "nadam", "sgd"])
def test_a_rate_of_zero_leaves_the_weights(name: str) -> None:
    weight, updater = np.ones(2), Updater(create(name, wd=0.1, learning_rate=0))
    for _ in range(2):
        updater(0, np.array([0.0, 2.0]), weight)
    assert weight.tolist() == [1, 1]


def test_adamax_leaves_elements_without_gradients() -> None:
    weight, updater = np.ones(2), Updater(create("adamax"))
    for _ in range(2):
        updater(0, np.array([0.0, 2.0]), weight)
    assert weight[0] == 1 > weight[1]


def test_the_schedule_of_nadam_is_each_keys_own() -> None:
    updater = Updater(create("nadam"))
    alone = np.ones(2)
    for _ in range(3):
        updater("a", np.full(2, 0.3), alone)
    for other in range(20):
        updater(other, np.ones(2), np.ones(2))
    late = np.ones(2)
    for _ in range(3):
        updater("z", np.full(2, 0.3), late)
    assert late.tobytes() == alone.tobytes()


@pytest.mark.parametrize("count", [1, 60, 61, 10**9])
def test_the_schedule_of_nadam_needs_no_history(count: int) -> None:
    optimizer, weight = create("nadam", schedule_decay=0.1), np.ones(1)
    state = optimizer.create_state(0, weight)
    optimizer.update(0, weight, np.ones(1), state, count)
    now, then = (0.9 * (1 - 0.5 * 0.96 ** (t * 0.1)) for t in (count, count + 1))
    product = math.prod(0.9 * (1 - 0.5 * 0.96 ** (t * 0.1)) for t in range(1, min(count, 2000) + 1))
    bar = (1 - now) / (1 - product) + then * 0.1 / (1 - product * then)
    root = math.sqrt(0.001 / (1 - 0.999**count)) + 1e-8
    assert weight[0] == pytest.approx(1 - 0.001 * bar / root, rel=1e-13)


def test_dcasgd_with_the_previous_weights_of_each_worker() -> None:
    optimizer, weight = create("dcasgd", learning_rate=0.5, lamda=2), np.array([1.0])
    assert optimizer.worker_slots == ("previous",)
    backups = [optimizer.create_state("w", weight)["previous"] for _ in range(2)]
    w, previous = 1.0, [1.0, 1.0]
    for count, (worker, g) in enumerate([(0, 0.5), (0, -0.25), (1, 0.5), (0, 0.125), (1, 0.25)], 1):
        optimizer.update("w", weight, np.array([g]), {"previous": backups[worker]}, count)
        w, previous[worker] = w - 0.5 * (g + 2 * g * g * (w - previous[worker])), w
        assert weight[0] == pytest.approx(w, rel=1e-15) and backups[worker][0] == previous[worker]


def test_the_backup_of_dcasgd_is_a_copy() -> None:
    for weight in (np.ones(2), np.ones(2, np.float16)):
        previous = create("dcasgd").create_state("w", weight)["previous"]
        weight += 1
        assert previous.tolist() == [1, 1] and previous.dtype == weight.dtype


def test_ftrl_without_beta_leaves_elements_without_gradients_at_zero() -> None:
    weight = np.zeros(2)
    Updater(create("ftrl", beta=0))(0, np.array([0.0, 1.0]), weight)
    assert weight[0] == 0 and weight[1] < 0
