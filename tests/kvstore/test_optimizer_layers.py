"""Optimizers on whole arrays, against the formulas in plain numpy; norms, rows, warm-ups and noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kvstore.bfloat16 import bfloat16, from_float32, to_float32
from kvstore.optimizer import FactorScheduler, GroupAdaGrad, Optimizer, Updater, create
from kvstore.optimizer.layerwise import norm
from kvstore.optimizer.sgld import _normal
from pslite.errors import ConfigError, DTypeError, ShapeError

Floats = np.ndarray[Any, Any]
STEPS = 7
COMMON: dict[str, Any] = {"rescale_grad": 0.5, "wd": 0.1, "clip_gradient": 0.6}
L2 = np.linalg.norm


class Reference:
    """A whole weight in float64: ``w``, its slots ``s``, the update's number ``t`` and the hyper-parameters ``p``."""

    def __init__(self, w: Floats, rule: Callable[..., None], p: dict[str, Any]) -> None:
        self.w, self.rule, self.t = w.astype(np.float64), rule, 0
        self.p = {"rescale_grad": 1.0, "wd": 0.0, "clip_gradient": None, **p}
        self.s = {name: np.zeros(w.shape) for name in ("m", "v", "sum")}
        self.last: float | None = None

    def update(self, g: Floats, lr: float, wd: float) -> None:
        self.t += 1
        self.rule(self, g.astype(np.float64), lr, wd, self.s, self.p)

    def clip(self, x: Floats) -> Floats:
        limit = self.p["clip_gradient"]
        return x if limit is None else np.clip(x, -limit, limit)

    def ratio(self, step: Floats) -> float:
        size = float(L2(self.w))
        size = max(size, self.p.get("lower_bound") or 0)
        size = min(size, self.p.get("upper_bound") or math.inf)
        return size / float(L2(step)) if size and L2(step) else 1.0


def lamb(e: Reference, g: Floats, lr: float, wd: float, s: dict[str, Floats], p: dict[str, Any]) -> None:
    b1, b2, eps = p.get("beta1", 0.9), p.get("beta2", 0.999), p.get("epsilon", 1e-6)
    d = e.clip(p["rescale_grad"] * g)
    s["m"], s["v"] = b1 * s["m"] + (1 - b1) * d, b2 * s["v"] + (1 - b2) * d * d
    c1, c2 = (1 - b1**e.t, 1 - b2**e.t) if p.get("bias_correction", True) else (1, 1)
    step = s["m"] / c1 / (np.sqrt(s["v"] / c2) + eps) + wd * e.w
    e.w = e.w - lr * e.ratio(step) * step


def lans(e: Reference, g: Floats, lr: float, wd: float, s: dict[str, Floats], p: dict[str, Any]) -> None:
    b1, b2, eps = p.get("beta1", 0.9), p.get("beta2", 0.999), p.get("epsilon", 1e-6)
    d = e.clip(p["rescale_grad"] * g / L2(p["rescale_grad"] * g))
    s["m"], s["v"] = b1 * s["m"] + (1 - b1) * d, b2 * s["v"] + (1 - b2) * d * d
    root = np.sqrt(s["v"] / (1 - b2**e.t)) + eps
    m = s["m"] / (1 - b1**e.t) / root + wd * e.w
    n = d / root + wd * e.w
    e.w = e.w - lr * (b1 * e.ratio(m) * m + (1 - b1) * e.ratio(n) * n)


def lars(e: Reference, g: Floats, lr: float, wd: float, s: dict[str, Floats], p: dict[str, Any]) -> None:
    g = p["rescale_grad"] * g
    rate = lr * p.get("eta", 0.001) * L2(e.w) / (L2(g) + wd * L2(e.w) + p.get("eps", 0.0))
    correction = lr / e.last if e.last and p.get("momentum_correction", True) else 1
    s["m"] = p.get("momentum", 0.0) * correction * s["m"] - rate * (e.clip(g) + wd * e.w)
    e.w, e.last = e.w + s["m"], lr


def lbsgd(e: Reference, g: Floats, lr: float, wd: float, s: dict[str, Floats], p: dict[str, Any]) -> None:
    batch, steps = p.get("batch_scale", 1), p.get("warmup_epochs", 5) * p.get("updates_per_epoch", 32)
    done = e.t + p.get("begin_epoch", 0) * p.get("updates_per_epoch", 32)
    s["sum"] = s["sum"] + g
    if done % batch:
        return
    g, s["sum"] = s["sum"] / batch, np.zeros(g.shape)
    strategy, part = p.get("warmup_strategy", "linear"), min(done / steps, 1)
    if strategy == "lars":
        scale = min(max(math.sqrt(L2(e.w) ** 2 / (L2(g) ** 2 + wd * L2(e.w) ** 2 + 1e-18)), 0.01), 100)
    else:
        scale = 1 + (batch - 1) * part ** {"linear": 1, "power2": 2, "sqrt": 0.5}[strategy]
    s["m"] = p.get("momentum", 0.0) * s["m"] - lr * scale * (e.clip(p["rescale_grad"] * g) + wd * e.w)
    e.w = e.w + s["m"]


def group_adagrad(e: Reference, g: Floats, lr: float, wd: float, s: dict[str, Floats], p: dict[str, Any]) -> None:
    d = e.clip(p["rescale_grad"] * g)
    s["v"] = s["v"] + (d * d).mean(axis=tuple(range(1, d.ndim)), keepdims=True)
    e.w = e.w - lr * d / np.sqrt(s["v"] + p.get("eps", 1e-5))


WARM: dict[str, Any] = {"batch_scale": 2, "warmup_epochs": 2, "updates_per_epoch": 3}
NO_WD = {"rescale_grad": 0.5, "clip_gradient": 0.6}

# name, rule, learning rate by default, arguments
CASES: list[tuple[str, Callable[..., None], float, dict[str, Any]]] = [
    ("lamb", lamb, 0.001, {}),
    ("lamb", lamb, 0.001, {"learning_rate": 0.1, **COMMON}),
    ("lamb", lamb, 0.001, {"beta1": 0.5, "beta2": 0.8, "epsilon": 1e-3, "bias_correction": False, **COMMON}),
    ("lamb", lamb, 0.001, {"lower_bound": 50, **COMMON}),
    ("lamb", lamb, 0.001, {"lower_bound": 0, "upper_bound": 0.5, **COMMON}),
    ("lans", lans, 0.001, {}),
    ("lans", lans, 0.001, {"learning_rate": 0.1, "rescale_grad": 0.5, "wd": 0.1, "clip_gradient": 0.2}),
    ("lans", lans, 0.001, {"beta1": 0.5, "beta2": 0.8, "epsilon": 1e-3, "lower_bound": 50, **COMMON}),
    ("lars", lars, 0.01, {}),
    ("lars", lars, 0.01, {"momentum": 0.9, "learning_rate": 2, **COMMON}),
    ("lars", lars, 0.01, {"momentum": 0.9, "eta": 0.5, "eps": 0.3, "momentum_correction": False, **COMMON}),
    ("lbsgd", lbsgd, 0.01, {}),
    ("lbsgd", lbsgd, 0.01, {"momentum": 0.9, **WARM, **COMMON}),
    ("lbsgd", lbsgd, 0.01, {"warmup_strategy": "power2", **WARM, **COMMON}),
    ("lbsgd", lbsgd, 0.01, {"warmup_strategy": "sqrt", "begin_epoch": 1, **WARM, **COMMON}),
    ("lbsgd", lbsgd, 0.01, {"warmup_strategy": "lars", "momentum": 0.9, **WARM, **COMMON}),
    ("groupadagrad", group_adagrad, 0.01, {}),
    ("groupadagrad", group_adagrad, 0.01, {"eps": 1e-2, **NO_WD}),
]


def case_id(value: Any) -> str:
    return value if isinstance(value, str) else ("-".join(value) or "defaults") if isinstance(value, dict) else ""


def data(dtype: str) -> tuple[Floats, list[Floats]]:
    random = np.random.default_rng(7)
    return random.normal(size=(3, 5, 2)).astype(dtype), [
        random.normal(scale=1.5, size=(3, 5, 2)).astype(dtype) for _ in range(STEPS)
    ]


cases = pytest.mark.parametrize(("name", "rule", "lr", "arguments"), CASES, ids=case_id)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-12)])
@cases
def test_formula(
    name: str, rule: Callable[..., None], lr: float, arguments: dict[str, Any], dtype: str, tolerance: float
) -> None:
    weight, grads = data(dtype)
    reference, updater = Reference(weight, rule, arguments), Updater(create(name, **arguments))
    for grad in grads:
        updater("w", grad, weight)
        reference.update(grad, arguments.get("learning_rate", lr), arguments.get("wd", 0.0))
    np.testing.assert_allclose(weight, reference.w, rtol=tolerance, atol=tolerance)


@cases
def test_multipliers_and_a_schedule(name: str, rule: Callable[..., None], lr: float, arguments: dict[str, Any]) -> None:
    weight, grads = data("float64")
    reference = Reference(weight, rule, arguments)
    optimizer = create(name, **{**arguments, "learning_rate": 0.2, "lr_scheduler": FactorScheduler(2, 0.5)})
    optimizer.set_lr_mult({"w": 0.25})
    optimizer.set_wd_mult({"w": 3})
    updater = Updater(optimizer)
    for count, grad in enumerate(grads):
        updater("w", grad, weight)
        before = max(count - 1, 0) if name == "lbsgd" else count  # its rate is that before the update
        reference.update(grad, 0.2 * 0.5 ** (before // 2) * 0.25, arguments.get("wd", 0.0) * 3)
    np.testing.assert_allclose(weight, reference.w, rtol=1e-12, atol=1e-12)


def train(optimizer: Optimizer, weight: Floats, grads: list[Floats]) -> Floats:
    updater, weight = Updater(optimizer), weight.copy()
    for grad in grads:
        updater("w", grad, weight)
    return weight


@cases
def test_whole_arrays_of_any_strides_and_the_gradient_is_not_written(
    name: str, rule: Callable[..., None], lr: float, arguments: dict[str, Any]
) -> None:
    weight, grads = data("float32")
    optimizer = create(name, **arguments)
    assert not optimizer.elementwise
    expected = train(optimizer, weight, grads)
    for grad in grads:
        grad.flags.writeable = False
    strided = np.zeros((2, 5, 6), np.float32)[:, :, ::2].T
    strided[...] = weight
    updater = Updater(optimizer)
    for grad in grads:
        updater(0, np.asfortranarray(grad), strided)
    assert strided.tobytes() == expected.tobytes()


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@cases
def test_half_precision_is_computed_in_float32(
    name: str, rule: Callable[..., None], lr: float, arguments: dict[str, Any], half: str
) -> None:
    weight, grads = data("float32")
    optimizer = create(name, **arguments)
    if half == "float16":
        narrow, grad = weight.astype(half), grads[0].astype(half)
        wide, wide_grad = narrow.astype(np.float32), grad.astype(np.float32)
        optimizer.update("w", narrow, grad, optimizer.create_state("w", narrow), 1)
    else:
        narrow, grad_bits = from_float32(weight), from_float32(grads[0])
        wide, wide_grad = to_float32(narrow), to_float32(grad_bits)
        state = optimizer.create_state("w", bfloat16(narrow))
        assert all(slot.dtype == np.float32 for slot in state.values())
        optimizer.update("w", bfloat16(narrow), bfloat16(grad_bits), state, 1)
    optimizer.update("w", wide, wide_grad, optimizer.create_state("w", wide), 1)
    expected = wide.astype(np.float16) if half == "float16" else from_float32(wide)
    assert narrow.tobytes() == expected.tobytes()


def test_mistakes() -> None:
    with pytest.raises(ShapeError, match=r"'w'.*\(3, 2\).*\(2, 3\)"):
        Updater(create("lamb"))("w", np.ones((3, 2)), np.ones((2, 3)))
    with pytest.raises(DTypeError, match=r"'w'.*int32.*float16, bfloat16, float32, float64"):
        Updater(create("lars"))("w", np.ones(2, "int32"), np.ones(2, "int32"))
    with pytest.raises(ConfigError, match=r"warmup_strategy='cubic'.*'linear', 'power2', 'sqrt', 'lars'"):
        create("lbsgd", warmup_strategy="cubic")


# -- norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 200_000])
@pytest.mark.parametrize("scale", [1e-30, 1, 1e30])
def test_norms_are_exact_and_the_same_for_any_strides(size: int, scale: float) -> None:
    x = (np.random.default_rng(size).normal(size=size) * scale).astype(np.float32)
    assert norm(x) == pytest.approx(math.sqrt(math.fsum(float(v) ** 2 for v in x)), rel=1e-14)
    padded = np.zeros((size, 3), np.float32)
    padded[:, 1] = x
    assert norm(padded[:, 1]) == norm(x)


@pytest.mark.parametrize("name", ["lamb", "lans", "lars"])
def test_weights_or_gradients_of_zeros(name: str) -> None:
    for start, pushed in ((0.0, 0.5), (1.0, 0.0), (0.0, 0.0)):
        weight, updater = np.full(3, start), Updater(create(name, learning_rate=0.1))
        for _ in range(2):
            updater(0, np.full(3, pushed), weight)
        assert np.isfinite(weight).all() and (weight == start).all() == (pushed == 0)


# -- LARS -------------------------------------------------------------------------------------------------------------


def test_the_rates_of_gamma_beta_and_bias_are_not_scaled() -> None:
    optimizer = create("lars", learning_rate=0.5, param_idx2name={0: "a_weight", 1: "a_bias", 2: "b_gamma"})
    for key, value in {0: 0.9995, 1: 0.5, 2: 0.5, "c_beta": 0.5, "c": 0.9995}.items():
        weight = np.ones(1)
        Updater(optimizer)(key, np.ones(1), weight)
        assert weight[0] == pytest.approx(value, rel=1e-12)


def test_lars_decays_names_that_end_in_weight() -> None:
    optimizer = create("lars", wd=1, param_idx2name={0: "a_weight", 1: "a_bias", 2: "b_gamma"})
    assert optimizer.wd_mult == {"a_bias": 0, "b_gamma": 0}


def test_momentum_is_corrected_for_every_key_when_the_rate_changes() -> None:
    weights = {"a_bias": np.ones(2, np.float32), "b_bias": np.ones((2, 2), np.float32)}
    optimizer = create("lars", learning_rate=0.5, momentum=0.5)
    updater = Updater(optimizer)
    for lr in (0.5, 0.5, 0.125, 0.0, 0.25):
        optimizer.set_learning_rate(lr)
        for key, weight in weights.items():
            updater(key, np.ones_like(weight), weight)
    w, mom, last = 1.0, 0.0, 0.0
    for lr in (0.5, 0.5, 0.125, 0.0, 0.25):
        mom = 0.5 * (lr / last if last else 1) * mom - lr
        w, last = w + mom, lr
    assert {float(x) for weight in weights.values() for x in weight.flat} == {w}


def test_each_row_of_sparse_gradients_has_its_own_last_rate() -> None:
    optimizer = create("lars", learning_rate=0.5, momentum=0.5, param_idx2name={0: "a_bias"})
    weight = np.ones((2, 3))
    state = optimizer.create_state(0, weight)
    for count, (rows, lr) in enumerate([([0, 1], 0.5), ([0], 0.25), ([0, 1], 0.125)], 1):
        optimizer.set_learning_rate(lr)
        part, slots = weight[rows], {name: slot[rows] for name, slot in state.items()}
        optimizer.update(0, part, np.ones_like(part), slots, count)
        weight[rows] = part
        for name, slot in slots.items():
            state[name][rows] = slot
    first = 1 - 0.5 - (0.25 * 0.5 + 0.25) - (0.25 * (0.25 * 0.5 + 0.25) + 0.125)
    second = 1 - 0.5 - (0.125 * 0.5 + 0.125)
    assert weight.tolist() == [[first] * 3, [second] * 3]


# -- LBSGD ------------------------------------------------------------------------------------------------------------


def test_a_large_batch_is_made_of_several_pushes() -> None:
    weight, updater = np.zeros(1), Updater(create("lbsgd", learning_rate=1, batch_scale=3, warmup_epochs=0))
    seen = []
    for gradient in (1, 2, 3, 4, 5, 6):
        updater(0, np.full(1, float(gradient)), weight)
        seen.append(weight[0])
    assert seen == [0, 0, -6, -6, -6, -21]  # three times the mean of three


# -- GroupAdaGrad -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_by_themselves_are_updated_as_with_zeros_for_the_others(dtype: str) -> None:
    random = np.random.default_rng(5)
    dense = random.normal(size=(9, 33)).astype(dtype)
    optimizer, rows = GroupAdaGrad(), [1, 4, 8]
    assert optimizer.lazy_update
    state = optimizer.create_state("w", dense)
    sparse, slots = dense.copy(), {name: slot.copy() for name, slot in state.items()}
    for count in (1, 2, 3):
        grad = np.zeros_like(dense)
        grad[rows] = random.normal(size=(3, 33)).astype(dtype)
        optimizer.update("w", dense, grad, state, count)
        part, part_slots = sparse[rows], {name: slot[rows] for name, slot in slots.items()}
        optimizer.update("w", part, grad[rows], part_slots, count)
        sparse[rows] = part
        for name, slot in slots.items():
            slot[rows] = part_slots[name]
    assert sparse.tobytes() == dense.tobytes() and slots["history"].tobytes() == state["history"].tobytes()


@pytest.mark.parametrize(("shape", "history"), [((), ()), ((4,), (4,)), ((4, 3), (4, 1)), ((4, 3, 2), (4, 1, 1))])
def test_one_number_for_each_row(shape: tuple[int, ...], history: tuple[int, ...]) -> None:
    assert GroupAdaGrad().create_state("w", np.ones(shape))["history"].shape == history


def test_there_is_no_weight_decay() -> None:
    optimizer, weight = GroupAdaGrad(wd=0.1), np.ones((2, 2))
    with pytest.raises(ConfigError, match=r"wd=0.1.*GroupAdaGrad"):
        Updater(optimizer)("w", np.ones((2, 2)), weight)
    assert (weight == 1).all()
    optimizer.set_wd_mult({"w": 0})
    Updater(optimizer)("w", np.ones((2, 2)), weight)
    assert (weight < 1).all()


# -- SGLD -------------------------------------------------------------------------------------------------------------


NOISE: dict[tuple[int, int | str, int], list[float]] = {  # of seed, key and update, for the first elements
    (0, "w", 1): [0.3443627171659512, -0.4466217542184694, 1.5408481251635626],
    (0, "w", 2): [-0.4307935710650523, -0.5544450825964613, -0.5199037316347025],
    (0, 7, 1): [-0.4203295815015339, 0.32254871362107723, 0.415866842060661],
    (0, "7", 1): [1.4949526202564691, 0.9794589437854352, 0.07628701017065018],
}


def noise(size: int, key: int | str = "w", update: int = 1, seed: int = 0) -> Floats:
    return np.concatenate([*_normal(seed, key, update, size)])


def test_a_step_of_sgld() -> None:
    weight = np.array([1.0, -2.0])
    optimizer = create("sgld", learning_rate=0.04, seed=3, **COMMON)
    optimizer.update("w", weight, np.array([4.0, 0.5]), {}, 5)
    drift = np.array([0.6 + 0.1, 0.25 - 0.2])
    np.testing.assert_allclose(weight, [1, -2] - 0.02 * drift + 0.2 * noise(2, update=5, seed=3), rtol=1e-14)


def test_the_noise_is_standard_normal_and_not_correlated() -> None:
    size = 200_000
    samples = [noise(size), noise(size, update=2), noise(size, key="v"), noise(size, seed=1)]
    for z in samples:
        assert abs(z.mean()) < 5 / math.sqrt(size) and abs(z.var() - 1) < 5 * math.sqrt(2 / size)
        for bound, part in ((1, 0.682689), (2, 0.954500), (3, 0.997300)):
            assert abs((abs(z) < bound).mean() - part) < 5 * math.sqrt(part * (1 - part) / size)
        assert abs((z[::2] * z[1::2]).mean()) < 5 / math.sqrt(size / 2)
        assert abs((z[::2] ** 2 * z[1::2] ** 2).mean() - 1) < 5 * math.sqrt(8 / (size / 2))
    for one in range(4):
        for other in range(one):
            assert abs((samples[one] * samples[other]).mean()) < 5 / math.sqrt(size)


def test_the_noise_is_the_same_in_every_process() -> None:
    for (seed, key, update), values in NOISE.items():
        np.testing.assert_allclose(noise(3, key, update, seed), values, rtol=1e-12)


def test_an_elements_noise_does_not_depend_on_how_many_there_are() -> None:
    long = noise(140_001)
    for size in (1, 5, 65_536, 65_537):
        assert noise(size).tobytes() == long[:size].tobytes()


def test_neither_order_of_keys_nor_precision_changes_the_noise() -> None:
    one, other = Updater(create("sgld")), Updater(create("sgld"))
    weights = {key: np.zeros(5) for key in ("a", "b", 1, "1")}
    again = {key: np.zeros(5, np.float32) for key in weights}
    for _ in range(2):
        for key, weight in weights.items():
            one(key, np.zeros(5), weight)
        for key, rounded in reversed(again.items()):
            other(key, np.zeros(5, np.float32), rounded)
    for key, weight in weights.items():
        np.testing.assert_allclose(again[key], weight, rtol=1e-6)
    assert len({weight.tobytes() for weight in weights.values()}) == 4
