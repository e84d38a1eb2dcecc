"""The networks of `benchmarks.models` in PyTorch, written as is usual there, with given weights."""

from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from benchmarks import measure
from benchmarks.measure import Contender


def by_torch(name: str, params: Any, batches: Any, compiled: bool) -> Contender:
    """A turn is one step per batch (x, y, …); it returns their losses."""
    torch.set_num_threads(measure.cores())
    torch.manual_seed(0)
    build, prepare = {"cnn": (cnn, channels_last), "gpt": (gpt, whole_numbers), "lstm": (lstm, whole_numbers)}[name]
    model = build(params)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(name, model)
    xs, ys = [prepare(x) for x in batches.x], [whole_numbers(y) for y in batches.y]

    def objective(x, y):
        return F.cross_entropy(model(x).flatten(0, -2), y.flatten())

    if compiled:
        objective = torch.compile(objective)

    def turn() -> list[float]:
        losses = []
        for x, y in zip(xs, ys, strict=True):
            optimizer.zero_grad()
            loss = objective(x, y)
            loss.backward()
            if name != "cnn":
                nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).tolist()

    return Contender(turn, {"parameters": sum(p.numel() for p in trained)})


def make_optimizer(name: str, model: nn.Module):
    """The optimizers of `models.SETTINGS`; matrices decay, except the GPT's table."""
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    if name == "cnn":
        return torch.optim.Adam(trained.values(), lr=2e-3, fused=True)
    decays = {key: p.ndim > 1 and not (name == "gpt" and key == "table") for key, p in trained.items()}
    groups = [
        {"params": [p for key, p in trained.items() if decays[key]], "weight_decay": 0.1},
        {"params": [p for key, p in trained.items() if not decays[key]], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=5e-3, betas=(0.9, 0.99), fused=True)


def whole_numbers(x: np.ndarray):
    return torch.from_numpy(x).long()


def channels_last(x: np.ndarray):
    """(B, H, W, C) as torch's (B, C, H, W), unchanged in memory: its faster layout on a CPU."""
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def linear(w: np.ndarray, b: np.ndarray | None = None):
    """x @ w + b."""
    layer = nn.Linear(*w.shape, bias=b is not None)
    given(layer.weight, w.T)
    if b is not None:
        given(layer.bias, b)
    return layer


def given(parameter, value: np.ndarray) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(value))


# ---------------------------------------------------------------- the networks


def cnn(params):
    """Stages of conv, batch norm, pooling and relu; two dense layers."""
    *stages, perceptron = [p for p in params if p]
    layers = []
    for conv, norm in zip(stages[::2], stages[1::2], strict=True):
        w = conv["w"].transpose(3, 2, 0, 1)  # HWIO -> OIHW
        layers += [nn.Conv2d(w.shape[1], w.shape[0], 3, padding=1, bias=False), nn.BatchNorm2d(w.shape[0])]
        given(layers[-2].weight, w)
        given(layers[-1].weight, norm["scale"])
        given(layers[-1].bias, norm["shift"])
        layers += [nn.MaxPool2d(2), nn.ReLU()]
    hidden, out = [p for p in perceptron if p]
    n = stages[-2]["w"].shape[3]
    side = round((len(hidden["w"]) / n) ** 0.5)
    w = hidden["w"].reshape(side, side, n, -1).transpose(2, 0, 1, 3).reshape(hidden["w"].shape)  # rows HWC -> CHW
    layers += [nn.Flatten(), linear(w, hidden["b"]), nn.ReLU(), linear(out["w"], out["b"])]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def lstm(params):
    """An embedding, an LSTM and a dense layer. torch's LSTM has two biases: the second is 0 and not trained."""
    embedding, cell, out = [p for p in params if p]
    units = len(cell["u"])

    def in_torch_s_order(p):  # columns i f o g -> i f g o
        i, f, o, g = np.split(p, 4, axis=-1)
        return np.concatenate([i, f, g, o], -1)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(*embedding["table"].shape)
            self.lstm = nn.LSTM(embedding["table"].shape[1], units, batch_first=True)
            self.out = linear(out["w"], out["b"])

        def forward(self, ids):
            return self.out(self.lstm(self.embedding(ids))[0])

    model = Network()
    given(model.embedding.weight, embedding["table"])
    given(model.lstm.weight_ih_l0, in_torch_s_order(cell["w"]).T)
    given(model.lstm.weight_hh_l0, in_torch_s_order(cell["u"]).T)
    given(model.lstm.bias_ih_l0, in_torch_s_order(cell["b"]))
    nn.init.zeros_(model.lstm.bias_hh_l0).requires_grad_(False)
    return model


def gpt(params, n_heads: int = 4, eps: float = 1e-5):
    """A decoder with RMS norm, rotary positions and SwiGLU, one table at both ends; q, k and v are one product."""
    table = params["table"]
    _, (attention, perceptron), last = params["body"]
    width = table.shape[1]

    def norm(scale):
        layer = nn.RMSNorm(width, eps)
        given(layer.weight, scale)
        return layer

    class Block(nn.Module):
        def __init__(self, l):
            super().__init__()
            to, hidden = ({name: w[l] for name, w in part[1].items()} for part in (attention, perceptron))
            self.norm1, self.norm2 = norm(attention[0]["scale"][l]), norm(perceptron[0]["scale"][l])
            self.qkv = linear(np.concatenate([to["wq"], to["wk"], to["wv"]], 1))
            self.join = linear(to["wo"])
            self.gate_up = linear(np.concatenate([hidden["wg"], hidden["wu"]], 1))
            self.down = linear(hidden["wd"])

        def forward(self, x, cos, sin):
            q, k, v = (
                part.unflatten(-1, (n_heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
            )
            q, k = rotated(q, cos, sin), rotated(k, cos, sin)
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.join(o.transpose(1, 2).flatten(2))
            gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
            return x + self.down(F.silu(gate) * up)

    def rotated(x, cos, sin):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.tensor(table))
            self.blocks = nn.ModuleList([Block(l) for l in range(len(attention[0]["scale"]))])
            self.norm = norm(last["scale"])

        def forward(self, ids):
            half = width // n_heads // 2
            angle = torch.outer(torch.arange(ids.shape[1]), 10_000.0 ** (-torch.arange(half) / half))
            cos, sin = angle.cos(), angle.sin()
            x = width**0.5 * F.embedding(ids, self.table)
            for block in self.blocks:
                x = block(x, cos, sin)
            return self.norm(x) @ self.table.T

    return Network()
