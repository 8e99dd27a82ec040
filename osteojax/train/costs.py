"""Minimum cost of a training step: FLOPs and bytes, counted in the traced program.

The step is traced, but neither compiled nor run, with plain convolutions and without
rematerialisation, so that the count depends on the model and not on its lowering. Convolutions and
matrix products are counted, each forward, for the gradient of its input and for that of its kernel.
A multiply-add is 2 FLOPs; those on padding are not counted. Element-wise work (normalisation, ReLU,
pooling, augmentation, online textures, the optimiser) is not counted, since bytes limit it.

Bytes are a lower bound: every operand of a product is read once and every result written once, in
its dtype. It is assumed that element-wise work is fused into the products, that caches keep nothing
from one product to the next, and that the training state is read and written once.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from osteojax import objectives
from osteojax.models import plain_fields
from osteojax.train.optim import adamw_direction
from osteojax.train.parallel import DataParallel
from osteojax.train.step import make_step
from osteojax.types import TrainState

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PASSES = ("forward", "input_gradient", "kernel_gradient")


@dataclasses.dataclass(frozen=True)
class Product:
    """One convolution or matrix product of a program.

    Attributes:
      layer: path of the Linen module it belongs to ("backbone/stage1_block1/conv1"), "" for none.
      part: one of `PASSES`.
      flops: 2 for each multiply-add, without those on padding.
      padded_flops: with those on padding, as a dense kernel computes.
      bytes: of the operands and of the result.
      operands, result: shapes.
      dtype: of the result.
    """

    layer: str
    part: str
    flops: int
    padded_flops: int
    bytes: int
    operands: tuple[tuple[int, ...], tuple[int, ...]]
    result: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Cost of one training step on one device.

    Attributes:
      products: every convolution and matrix product.
      state_bytes: of the training state (parameters, moments, statistics, queue).
      gradient_bytes: of the gradients, which the optimiser reads.
      batch_bytes: of the batch that the step receives.
      num_parameters: of the model.
    """

    products: tuple[Product, ...]
    state_bytes: int
    gradient_bytes: int
    batch_bytes: int
    num_parameters: int

    @property
    def flops(self) -> int:
        """Model FLOPs without padding, from which `model_flops_utilization` is computed."""
        return sum(product.flops for product in self.products)

    @property
    def padded_flops(self) -> int:
        return sum(product.padded_flops for product in self.products)

    @property
    def state_and_batch_bytes(self) -> int:
        """Bytes of reading and writing the state, and of reading gradients and batch."""
        return 2 * self.state_bytes + self.gradient_bytes + self.batch_bytes

    @property
    def bytes(self) -> int:
        """Lower bound of the bytes of a step: of the products, the state and the batch."""
        return sum(product.bytes for product in self.products) + self.state_and_batch_bytes


def step_cost(config: ConfigDict, cohort: Any, batch: Any, num_devices: int = 1) -> StepCost:
    """Cost of one step of `config` on each of `num_devices` devices. Nothing is computed.

    Args:
      config: of configs/*.py; fields of the backbone's `PLAIN` make no difference.
      cohort: `PreparedCohort`, or anything with the `manifest` and `directory` of one.
      batch: the global batch of the step: arrays or `jax.ShapeDtypeStruct`s.
      num_devices: that share the batch; so many must exist.

    Raises:
      UserError: the batch does not divide over the devices, or the objective refuses it.
    """
    plain = copy.deepcopy(config)
    with plain.unlocked():
        plain.model.update(plain_fields(plain.model))
    objective = objectives.load(plain, cohort)
    devices = DataParallel.create("shard_map", num_devices)
    devices.check_batch(plain.batch_size)
    optimizer = objective.optimizer(adamw_direction(plain), optax.constant_schedule(1e-4))
    step = make_step(objective.loss, optimizer, devices, plain.optim.ema_decay)

    def new_state() -> TrainState:
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
        params, model_state = objective.init(jax.random.key(0), blank)
        ema = params if plain.optim.ema_decay is not None else None
        return TrainState(jnp.int32(0), params, model_state, optimizer.init(params), ema)

    state = jax.eval_shape(new_state)
    return StepCost(
        products=tuple(products(step, state, batch, jax.random.key(0))),
        state_bytes=_tree_bytes(state),
        gradient_bytes=_tree_bytes(state.params),
        batch_bytes=_tree_bytes(batch) // num_devices,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    )


def products(program: Callable, *args: Any) -> list[Product]:
    """Convolutions and matrix products of `program(*args)`, per device if it is mapped.

    Args:
      args: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: a product inside a loop whose length depends on data.
    """
    found = list(_walk(jax.make_jaxpr(program)(*args).jaxpr, 1))
    # Shapes are sorted because a gradient may be computed transposed.
    kernels = {(p.layer, *sorted(p.operands[1])) for p, backward in found if not backward}

    def part(product: Product, backward: bool) -> str:
        if not backward:
            return "forward"
        is_kernel = (product.layer, *sorted(product.result)) in kernels
        return "kernel_gradient" if is_kernel else "input_gradient"

    return [dataclasses.replace(p, part=part(p, backward)) for p, backward in found]


def _tree_bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _walk(jaxpr: Any, times: int) -> Iterator[tuple[Product, bool]]:
    """Yields (product, whether it is of the backward pass); products in loops are multiplied."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _MULTIPLY_ADDS:
            yield _product(equation, times)
            continue
        runs = times * equation.params["length"] if name == "scan" else times
        inside = [list(_walk(body, runs)) for body in _bodies(equation)]
        if name == "while" and any(inside):
            raise ValueError(
                "a product is inside a while loop, whose length is not known. Use "
                "lax.scan, or lax.fori_loop of a fixed length."
            )
        if name == "cond":  # only one branch runs; the most expensive one is counted
            inside = [max(inside, key=lambda branch: sum(p.flops for p, _ in branch))]
        for body in inside:
            yield from body


def _bodies(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns"):
                yield inner


def _product(equation: Any, times: int) -> tuple[Product, bool]:
    multiply_adds, padded = _MULTIPLY_ADDS[equation.primitive.name](equation)
    arrays = [variable.aval for variable in (*equation.invars, *equation.outvars)]
    stack = str(equation.source_info.name_stack)
    # "transpose(jvp(Model))/backbone/stem": Linen names scopes; differentiation wraps the root's
    # name.
    root, _, layer = re.sub(r"\w+\(|\)", "", stack).partition("/")
    product = Product(
        layer=layer or root,
        part="",
        flops=2 * multiply_adds * times,
        padded_flops=2 * padded * times,
        bytes=times * _tree_bytes(arrays),
        operands=(arrays[0].shape, arrays[1].shape),
        result=arrays[2].shape,
        dtype=str(arrays[2].dtype),
    )
    return product, "transpose(" in stack


# ---------------------------------------------------------------- multiply-adds


def _convolution_multiply_adds(equation: Any) -> tuple[int, int]:
    image, kernel, out = (v.aval.shape for v in (*equation.invars, *equation.outvars))
    params = equation.params
    of_image, of_kernel, of_out = params["dimension_numbers"]
    # Each output sums over the input features of its group.
    valid = padded = out[of_out[0]] * out[of_out[1]] * kernel[of_kernel[1]]
    for axis in range(len(params["window_strides"])):
        pairs, all_pairs = meeting_taps(
            size=image[of_image[2 + axis]],
            outputs=out[of_out[2 + axis]],
            taps=kernel[of_kernel[2 + axis]],
            stride=params["window_strides"][axis],
            low=params["padding"][axis][0],
            input_dilation=params["lhs_dilation"][axis],
            tap_dilation=params["rhs_dilation"][axis],
        )
        valid, padded = valid * pairs, padded * all_pairs
    return valid, padded


def meeting_taps(
    *,
    size: int,
    outputs: int,
    taps: int,
    stride: int = 1,
    low: int = 0,
    input_dilation: int = 1,
    tap_dilation: int = 1,
) -> tuple[int, int]:
    """Number of pairs (output, tap) along one axis of a convolution that read a voxel of the input,
    and the number if the input had no end. `low`: padding before the first voxel."""
    position = np.arange(outputs)[:, None] * stride + np.arange(taps) * tap_dilation - low
    on_grid = position % input_dilation == 0  # there is no voxel between dilated voxels
    inside = (position >= 0) & (position <= (size - 1) * input_dilation)
    return int((on_grid & inside).sum()), int(on_grid.sum())


def _matrix_multiply_adds(equation: Any) -> tuple[int, int]:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    count = math.prod(out) * math.prod(lhs[axis] for axis in contracted)
    return count, count


_MULTIPLY_ADDS: dict[str, Callable[[Any], tuple[int, int]]] = {
    "conv_general_dilated": _convolution_multiply_adds,
    "dot_general": _matrix_multiply_adds,
}
