"""The SwAV step in PyTorch with its usual optimisations, for comparison with ours.

Network, losses, queue and optimiser are the same, on the same codes. It uses bf16 autocast where
the config computes in bfloat16, channels last, and the fused AdamW; on CUDA also torch.compile, and
the whole step, with the optimiser, captured as one CUDA graph. On CPU it runs eagerly, which is
fastest there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from osteojax.errors import UserError

CAPTURE_WARMUP = 3
"""Steps before a CUDA graph is captured, as PyTorch requires."""
FORM = ("shortcut", "stem_window", "stem_stride", "max_pool", "block_scale")
"""Fields of `config.model` that the copy of the network has; a config without one means 0.1's."""


class Block(nn.Module):
    """Two 3^3 convolutions with a shortcut (`osteojax.models.resnet.BasicBlock`)."""

    def __init__(
        self, in_features: int, features: int, stride: int, shortcut: str, scale: float
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv3d(in_features, features, 3, stride, 1, bias=False),
            nn.BatchNorm3d(features),
            nn.ReLU(inplace=True),
            nn.Conv3d(features, features, 3, 1, 1, bias=False),
            nn.BatchNorm3d(features),
        )
        nn.init.constant_(self.branch[4].weight, scale)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_features != features:
            average = stride > 1 and shortcut == "average"
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_features, features, 1, 1 if average else stride, bias=False),
                nn.BatchNorm3d(features),
            )
            if average:  # at an odd edge over the voxels that exist
                self.shortcut.insert(0, nn.AvgPool3d(2, ceil_mode=True, count_include_pad=False))

    def forward(self, x: Any) -> Any:
        return torch.relu(self.branch(x) + self.shortcut(x))


def resnet(
    stage_sizes: tuple[int, ...],
    width: int,
    *,
    shortcut: str = "strided",
    stem_window: int = 7,
    stem_stride: int = 2,
    max_pool: bool = True,
    block_scale: float = 0.0,
) -> Any:
    """f[B, 1, D, H, W] -> f[B, F]: `osteojax.models.resnet.ResNet` in 3D, with its fields."""
    parts: list[nn.Module] = [
        nn.Conv3d(1, width, stem_window, stem_stride, stem_window // 2, bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
    ]
    if max_pool:
        parts.append(nn.MaxPool3d(3, 2, 1))
    in_features = width
    for stage, blocks in enumerate(stage_sizes):
        for index in range(blocks):
            features = width * 2**stage
            stride = 2 if stage and not index else 1
            parts.append(Block(in_features, features, stride, shortcut, block_scale))
            in_features = features
    return nn.Sequential(*parts, nn.AdaptiveAvgPool3d(1), nn.Flatten())


class SwAV(nn.Module):
    """Encoder, projector, prototypes and queue; a call is the loss of a batch of codes.

    The queue is always full, as it is for all but the first steps of a run.
    """

    def __init__(self, config: Any, map_affine: np.ndarray) -> None:
        super().__init__()
        self.settings, self.augment = config.objective, config.data.augment
        self.half = config.model.dtype == "bfloat16"
        stage_sizes, width = tuple(config.model.stage_sizes), config.model.width
        hidden, dim = self.settings.projector_dim, self.settings.prototype_dim
        form = {name: config.model[name] for name in FORM if name in config.model}
        encoder = resnet(stage_sizes, width, **form)
        self.encoder = encoder.to(memory_format=torch.channels_last_3d)
        self.projector = nn.Sequential(
            nn.Linear(width * 2 ** (len(stage_sizes) - 1), hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, dim),
        )
        self.prototypes = nn.Parameter(torch.randn(self.settings.num_prototypes, dim))
        wants_queue = config.batch_size < 8 * self.settings.num_prototypes
        size = self.settings.queue_size if wants_queue else 0
        queue = functional.normalize(torch.randn(size, 2, dim), dim=-1)
        self.register_buffer("queue", queue)
        self.register_buffer("map_affine", torch.as_tensor(map_affine))

    def forward(self, codes_BVDHW: Any, map_ids_BV: Any) -> Any:
        batch, views = map_ids_BV.shape
        x = self.network_input(self.moved(codes_BVDHW), map_ids_BV.reshape(-1))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
            embedding = self.encoder(x)
        with torch.autocast(x.device.type, enabled=False):
            projection = functional.normalize(self.projector(embedding.float()), dim=-1)
            prototypes_KD = functional.normalize(self.prototypes, dim=-1)
            projection_BVD = projection.reshape(batch, views, -1)
            scores_BVK = projection_BVD @ prototypes_KD.T
            targets_BVK = self.assign(scores_BVK, prototypes_KD)
            log_p_BVK = torch.log_softmax(scores_BVK / self.settings.temperature, dim=-1)
            swapped = -(targets_BVK.flip(1) * log_p_BVK).sum((1, 2)).mean()
            self.push(projection_BVD)
            return swapped + self.settings.diversity_weight * self.diversity(prototypes_KD)

    def moved(self, codes_BVDHW: Any) -> Any:
        """Shifts and flips every view, as `osteojax.data.augment`; uint8[B * V, D, H, W]."""
        codes = codes_BVDHW.flatten(0, 1)
        count, limit = codes.shape[0], self.augment.max_shift_voxels
        for axis in (1, 2, 3):
            size = codes.shape[axis]
            shift = torch.randint(-limit, limit + 1, (count, 1), device=codes.device)
            source = (torch.arange(size, device=codes.device) + shift).clamp(0, size - 1)
            if axis == 3:
                flip = torch.rand((count, 1), device=codes.device) < self.augment.flip_probability
                source = torch.where(flip, source.flip(1), source)
            shape = [count, 1, 1, 1]
            shape[axis] = size
            codes = codes.gather(axis, source.reshape(shape).expand(codes.shape))
        return codes

    def network_input(self, codes: Any, map_ids: Any) -> Any:
        scale, shift = self.map_affine[map_ids].reshape(-1, 2, 1, 1, 1).unbind(1)
        x = (codes.float() * scale + shift).unsqueeze(1)
        return x.contiguous(memory_format=torch.channels_last_3d)

    @torch.no_grad()
    def assign(self, scores_BVK: Any, prototypes_KD: Any) -> Any:
        """Sinkhorn of each view beside the queue, log domain (`osteojax.ops.sinkhorn`)."""
        queue_scores = self.queue @ prototypes_KD.T
        log_q = torch.cat([scores_BVK, queue_scores]) / self.settings.sinkhorn_epsilon
        for _ in range(self.settings.sinkhorn_iterations):
            log_q = log_q - torch.logsumexp(log_q, dim=0, keepdim=True)
            log_q = log_q - torch.logsumexp(log_q, dim=2, keepdim=True)
        return log_q[: scores_BVK.shape[0]].exp()

    @torch.no_grad()
    def push(self, projection_BVD: Any) -> None:
        if len(self.queue):
            kept = self.queue[: -projection_BVD.shape[0]]
            self.queue.copy_(torch.cat([projection_BVD, kept]))

    @torch.no_grad()
    def constrain(self) -> None:
        """After an update, as `osteojax.objectives.swav.SwAV.constrain`."""
        if self.settings.get("unit_prototypes", False):
            self.prototypes.copy_(functional.normalize(self.prototypes, dim=-1))

    def diversity(self, prototypes_KD: Any) -> Any:
        cosines = (prototypes_KD @ prototypes_KD.T).relu()
        k = cosines.shape[0]
        return (cosines.square().sum() - cosines.diagonal().square().sum()) / (k * (k - 1))


class _Dispatched:
    """A result of PyTorch that `jax.block_until_ready` can wait for."""

    def block_until_ready(self) -> _Dispatched:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self


def swav_step(
    config: Any, batch: dict[str, np.ndarray], map_affine: np.ndarray, platform: str
) -> Callable[[], _Dispatched]:
    """A call that takes one step of `config` on a batch on the device, on a GPU as one CUDA graph.

    Args:
      config: of configs/tp_swav_resnet34.py.
      batch: codes uint8[B, 2, D, H, W] and map_ids i32[B, 2].
      map_affine: f32[len(POOL), 2] (`Manifest.map_affine`).
      platform: "cpu" or "gpu", where JAX takes its steps.
    """
    one = _Step(config, batch, map_affine, platform)
    if platform == "gpu":
        return one.captured(torch.compile(one.model, mode="max-autotune-no-cudagraphs"))
    return one.eager(one.model)


def swav_steps(
    config: Any, batch: dict[str, np.ndarray], map_affine: np.ndarray, platform: str
) -> Iterator[tuple[str, Callable[[], _Dispatched]]]:
    """(name, call that takes one step) of the forms of a step, the quickest to prepare first.

    Arguments are those of `swav_step`. On a GPU the second is compiled and the third is also one
    CUDA graph. They are compiled by inductor's own choice of kernels: timing its candidates for
    every 3D convolution ("max-autotune") takes minutes.
    """
    one = _Step(config, batch, map_affine, platform)
    yield "eager", one.eager(one.model)
    if platform == "gpu":
        compiled = torch.compile(one.model)
        yield "compiled", one.eager(compiled)
        yield "compiled, one CUDA graph", one.captured(compiled)


def peak_bytes() -> int | None:
    """Most memory that PyTorch's tensors had on the GPU in this process; None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


class _Step:
    """Model, optimiser and batch on a device, from which calls of one step are made."""

    def __init__(
        self, config: Any, batch: dict[str, np.ndarray], map_affine: np.ndarray, platform: str
    ) -> None:
        if (platform == "gpu" and not torch.cuda.is_available()) or platform not in ("cpu", "gpu"):
            raise UserError(
                f"--peers pytorch: JAX runs on {platform} and this PyTorch cannot. Install a build "
                "of PyTorch that can, or leave out --peers."
            )
        device = torch.device("cuda" if platform == "gpu" else "cpu")
        if platform == "gpu":
            # JAX multiplies float32 in TF32 on a GPU by default, so PyTorch does too.
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        self.model = SwAV(config, map_affine).to(device)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.optim.learning_rate,
            betas=(config.optim.beta1, config.optim.beta2),
            weight_decay=config.optim.weight_decay,
            fused=True,
            capturable=platform == "gpu",
        )
        self._codes = torch.as_tensor(batch["codes"], device=device)
        self._map_ids = torch.as_tensor(batch["map_ids"], device=device).long()

    def _take(self, loss: Any) -> None:
        """One step, without clearing the gradients of the step before."""
        loss(self._codes, self._map_ids).backward()
        self._optimizer.step()
        self.model.constrain()

    def eager(self, loss: Any) -> Callable[[], _Dispatched]:
        """Steps of a model, compiled or not, dispatched operation by operation."""

        def once() -> _Dispatched:
            self._optimizer.zero_grad(set_to_none=True)
            self._take(loss)
            return _Dispatched()

        return once

    def captured(self, loss: Any) -> Callable[[], _Dispatched]:
        """The step of a model with its optimiser, captured as one CUDA graph."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(CAPTURE_WARMUP):
                self.eager(loss)()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # The graph allocates its gradients and overwrites them.
        self._optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self._take(loss)

        def once() -> _Dispatched:
            graph.replay()
            return _Dispatched()

        return once
