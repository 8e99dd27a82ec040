"""The same network in PyTorch, with the weights that `osteojax export` wrote.

    python examples/resnet3d_pytorch.py MODEL ROIS.npz

MODEL: exported folder (model.json, weights.safetensors). ROIS.npz: `hu` float32[N, D, H, W], one
vertebra each, in the frame that model.json describes; `device`, N names of DXA scanners; and `body`
bool[N, D, H, W], the vertebral bodies, where model.json lists it. Needs torch, numpy and
safetensors, but not OsteoJAX. Every tensor is a parameter or a buffer, so that training can be
continued.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn
from torch.nn import functional


class Norm(nn.Module):
    """Batch normalisation with running statistics, or group normalisation, which has none."""

    def __init__(self, channels: int, kind: str, rank: int) -> None:
        super().__init__()
        if kind == "group":
            self.norm: nn.Module = nn.GroupNorm(int(np.gcd(32, channels)), channels, eps=1e-5)
        else:
            batch_norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[rank]
            self.norm = batch_norm(channels, eps=1e-5, momentum=0.1)

    def forward(self, x):
        return self.norm(x)


class Block(nn.Module):
    """Two 3^rank convolutions and a shortcut (He et al. 2016).

    Where space is halved, an "average" shortcut is the mean of 2^rank voxels and then a 1^rank
    convolution (He et al. 2019); a "strided" one is a 1^rank convolution of stride 2.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, kind: str, rank: int, shortcut: str
    ) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[rank]
        self.conv1 = conv(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = Norm(outputs, kind, rank)
        self.conv2 = conv(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = Norm(outputs, kind, rank)
        self.projection, self.mean = None, nn.Identity()
        if stride != 1 and shortcut == "average":
            mean = {2: nn.AvgPool2d, 3: nn.AvgPool3d}[rank]
            # At an odd edge the mean is over the voxels that exist.
            self.mean = mean(2, ceil_mode=True, count_include_pad=False)
        if stride != 1 or inputs != outputs:
            step = 1 if shortcut == "average" else stride
            self.projection = conv(inputs, outputs, 1, step, bias=False)
            self.projection_norm = Norm(outputs, kind, rank)

    def forward(self, x):
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.projection is not None:
            x = self.projection_norm(self.projection(self.mean(x)))
        return functional.relu(x + y)


class ResNet(nn.Module):
    """[B, 1, *space] -> [B, F], the mean of the last stage over space.

    `model` has the fields of config.model in model.json; a model of 0.1 or 0.2 lacks some.
    """

    def __init__(self, model: dict) -> None:
        super().__init__()
        width, rank, kind = model["width"], model["rank"], model["norm"]
        window, shortcut = model.get("stem_window", 7), model.get("shortcut", "strided")
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[rank]
        pool = {2: nn.MaxPool2d, 3: nn.MaxPool3d}[rank]
        self.stem = conv(1, width, window, model.get("stem_stride", 2), window // 2, bias=False)
        self.stem_norm = Norm(width, kind, rank)
        self.pool = pool(3, 2, 1) if model.get("max_pool", True) else nn.Identity()
        channels, self.blocks = width, []
        for stage, count in enumerate(model["stage_sizes"]):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"stage{stage + 1}_block{index + 1}"
                outputs = width * 2**stage
                self.add_module(name, Block(channels, outputs, stride, kind, rank, shortcut))
                self.blocks.append(name)
                channels = outputs

    def forward(self, x):
        x = self.pool(functional.relu(self.stem_norm(self.stem(x))))
        for name in self.blocks:
            x = getattr(self, name)(x)
        return x.flatten(2).mean(2)


class Experts(nn.Module):
    """Mixture of experts for diagnosis, BMD and level; the gate uses the DXA scanner."""

    def __init__(self, shapes: dict) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(torch.empty(shape)))

    def forward(self, embedding, device):
        def each(x, layer):  # [B, F] or [B, N, F] -> [B, N, O], expert by expert
            kernel = getattr(self, f"experts_{layer}_kernel")
            equation = "bf,nfo->bno" if x.ndim == 2 else "bnf,nfo->bno"
            return torch.einsum(equation, x, kernel) + getattr(self, f"experts_{layer}_bias")

        hidden = functional.relu(each(embedding, "hidden"))
        gate = torch.ones_like(embedding[:, :1])
        if hasattr(self, "gate_hidden_kernel"):
            x = embedding
            if hasattr(self, "device_embedding_embedding"):
                x = x + self.device_embedding_embedding[device]
            x = functional.relu(x @ self.gate_hidden_kernel + self.gate_hidden_bias)
            gate = torch.softmax(x @ self.gate_output_kernel + self.gate_output_bias, 1)
        layers = ("diagnosis", "bmd", "position")
        mixed = [(gate[..., None] * each(hidden, layer)).sum(1) for layer in layers]
        return (*mixed, gate)


def fixed_crops(x, body, edge: int, count: int, share: float):
    """The crops that model.json describes, as one image each.

    [B, D, H, W], bool[B, D, H, W] -> [B * count, edge, edge, edge].
    """
    shares = functional.avg_pool3d(body[:, None].float(), edge, 1)[:, 0]
    sizes = shares.shape[1:]
    voxels = (shares.flatten(1) * edge**3).round()
    enough = voxels >= max(math.ceil(share * edge**3 - 1e-6), 1)
    best = voxels == voxels.amax(1, keepdim=True)
    best = best & (best.long().cumsum(1) == 1)  # the first one
    seen = (enough | (best & ~enough.any(1, keepdim=True))).long().cumsum(1)
    ranks = (2 * torch.arange(count) + 1) * seen[:, -1:] // (2 * count)
    place = (seen[:, None] <= ranks[..., None]).sum(2)  # in C order
    corners = (place // (sizes[1] * sizes[2]), place // sizes[2] % sizes[1], place % sizes[2])
    along = torch.arange(edge)
    z, y, x_index = (corner[..., None] + along for corner in corners)
    batch = torch.arange(x.shape[0])[:, None, None, None, None]
    z, y, x_index = z[..., None, None], y[:, :, None, :, None], x_index[:, :, None, None]
    return x[batch, z, y, x_index].flatten(0, 1)


def body_numbers(hu, body):
    """The numbers that model.json describes, before z-scoring: [B, D, H, W] -> [B, 11]."""
    space = (1, 2, 3)
    count = body.sum(space)
    mean = (hu * body).sum(space) / count
    hu = (hu - mean[:, None, None, None]) * body
    numbers = [mean, ((hu**2).sum(space) / count).sqrt()]
    for axis in space:
        for lag in (1, 2, 3):
            length = hu.shape[axis] - lag
            step = hu.narrow(axis, lag, length) - hu.narrow(axis, 0, length)
            both = body.narrow(axis, lag, length) & body.narrow(axis, 0, length)
            squares = (step**2 * both).sum(space) / both.sum(space)
            numbers.append(torch.where(squares < 1, 1.0, squares).log())
    return torch.stack(numbers, 1)


class OsteoModel(nn.Module):
    """(HU f32[B, D, H, W], device i64[B], body bool[B, D, H, W]) -> the outputs that model.json
    lists. An exported encoder needs no device and returns only the embedding; only a model whose
    model.json lists the body takes it."""

    def __init__(self, card: dict, shapes: dict) -> None:
        super().__init__()
        model = card["config"]["model"]
        if model["name"] != "resnet" or model["norm"] not in ("batch", "group", "per_map"):
            raise SystemExit(f"this example does not support the model {model}")
        if card["config"].get("moe", {}).get("decoder", "experts") != "experts":
            raise SystemExit("this example supports only moe.decoder=experts")
        self.card, self.rank = card, model["rank"]
        self.backbone = ResNet(model)
        whole = any(name.startswith("params.whole.") for name in shapes)
        self.whole = ResNet(model) if whole else None
        prefix = "params.experts."
        heads = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}
        self.experts = Experts(heads) if heads else None
        for name in ("mean", "std") if "numbers.mean" in shapes else ():
            self.register_buffer(f"numbers_{name}", torch.empty(shapes[f"numbers.{name}"]))

    def embed(self, hu, body):
        inputs, parts = self.card["inputs"], []
        code, crops = inputs["network_input"], inputs.get("crops")
        x = torch.floor((hu - code["offset_hu"]) / code["step_hu"] + 0.5)
        x = x.clip(0, code["codes"] - 1)

        def encode(encoder, x, entry):
            x = entry["scale"] * x + entry["shift"]
            if self.rank == 2:
                x = x[..., x.shape[-1] // 2]  # the mid-sagittal slice
            return encoder(x[:, None])

        if crops is not None:
            count = crops["count"]
            cut = fixed_crops(x, body, crops["edge_voxels"], count, crops["body_share"])
            parts.append(encode(self.backbone, cut, crops).unflatten(0, (-1, count)).mean(1))
        if crops is None or self.whole is not None:
            parts.append(encode(self.whole or self.backbone, x, code))
        if hasattr(self, "numbers_mean"):
            numbers = body_numbers(hu.clip(*inputs["hu"]["window"]), body)
            scores = (numbers - self.numbers_mean) / self.numbers_std
            parts.append(torch.where(torch.isfinite(scores), scores, 0.0))
        return torch.cat(parts, 1)

    def forward(self, hu, device=None, body=None):
        embedding = self.embed(hu, body)
        if self.experts is None:
            return {"embedding": embedding}
        logits, bmd, level_logits, gate = self.experts(embedding, device)
        grams = self.card["outputs"]["bmd_g_cm2"]
        return {
            "probability": torch.softmax(logits, 1)[:, 1],
            "bmd_g_cm2": bmd[:, 0] * grams["std"] + grams["mean"],
            "level_probabilities": torch.softmax(level_logits, 1),
            "gate": gate,
            "embedding": embedding,
        }


LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def state_dict(weights: dict) -> dict:
    """Tensors of weights.safetensors, by the names and in the layouts of `OsteoModel`."""
    state = {}
    for name, array in weights.items():
        if name.startswith("numbers."):
            state[name.replace(".", "_")] = torch.from_numpy(array.copy())
            continue
        _, part, rest = name.split(".", 2)  # params or batch_stats; backbone, whole or experts
        if part == "experts":
            state[f"experts.{rest.replace('.', '_')}"] = torch.from_numpy(array.copy())
            continue
        path, _, leaf = rest.rpartition(".")
        if leaf == "kernel":  # [*window, in, out] -> [out, in, *window]
            array = np.moveaxis(array, (-1, -2), (0, 1))
        elif array.ndim == 2:  # statistics per texture map, of which the image is the first
            array = array[0]
        state[f"{part}.{path}.{LEAVES.get(leaf, leaf)}"] = torch.from_numpy(array.copy())
    return state


def load(folder: Path) -> OsteoModel:
    """The model, in evaluation mode."""
    card = json.loads((folder / "model.json").read_text())
    weights = load_file(folder / "weights.safetensors")
    model = OsteoModel(card, {name: array.shape for name, array in weights.items()})
    missing, unexpected = model.load_state_dict(state_dict(weights), strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise SystemExit(f"{folder}: tensors missing {missing}, not known {unexpected}")
    return model.eval()


def main(folder: Path, rois: Path) -> None:
    model = load(folder)
    data = np.load(rois, allow_pickle=False)
    device = [model.card["devices"].index(name) for name in data["device"]]
    with torch.no_grad():
        body = torch.from_numpy(data["body"]) if "body" in model.card["inputs"] else None
        outputs = model(torch.from_numpy(data["hu"]), torch.tensor(device), body)
    print(json.dumps({name: value.tolist() for name, value in outputs.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
