"""The peer of `ranking_speed.py`: hstu_ranking and hpgr written in PyTorch, trained on the same made-up rows.

    .venv-peers/bin/python benchmarks/torch_ranking_models.py --rows rows.npz --model hpgr

Reads the rows that `ranking_speed.py` writes. The last line is one JSON document: seconds a step and the last loss.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 the name that everybody gives it


class TargetBlock(nn.Module):
    """HSTU's ranking block: events see the past, candidates see weighted events and themselves."""

    def __init__(self, dim: int, heads: int, size: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.size, self.dropout = heads, size, dropout
        self.input_norm, self.value_norm = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.uvqk = nn.Linear(dim, 4 * dim)
        self.out = nn.Linear(3 * dim, dim, bias=False)
        for weight in (self.uvqk.weight, self.out.weight):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.uvqk.bias)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """U, then V, Q, K by head."""
        u, *rest = F.silu(self.uvqk(self.input_norm(x))).chunk(4, dim=-1)
        return (u, *(each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in rest))

    def finish(self, x: Tensor, u: Tensor, mixed: Tensor) -> Tensor:
        """Gate, project, add."""
        normed = self.value_norm(mixed.transpose(1, 2).flatten(2))
        gated = F.dropout(torch.cat([u, normed, u * normed], dim=-1), self.dropout, self.training)
        return self.out(gated) + x

    def forward(
        self, x: Tensor, c: Tensor, past: Tensor, seen: Tensor, biases: tuple[Tensor, Tensor, Tensor] | None, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Events (B, L, D) and candidates (B, C, D) after the block; of the last one events are not asked for."""
        u, v, q, k = self.split(x)
        own_u, own_v, own_q, own_k = self.split(c)
        scale = q.shape[-1] ** -0.5
        scores, own = scale * own_q @ k.transpose(2, 3), scale * (own_q * own_k).sum(-1, keepdim=True)
        if biases is not None:
            scores, own = scores + biases[1], own + biases[2]
        mixed = (F.silu(scores) * seen[:, None]) @ v + F.silu(own) * own_v
        c = self.finish(c, own_u, mixed / self.size)
        if last:
            return x, c
        scores = scale * q @ k.transpose(2, 3)
        if biases is not None:
            scores = scores + biases[0]
        return self.finish(x, u, (F.silu(scores) * past[:, None]) @ v / self.size), c


class TransformerBlock(nn.Module):
    """Post-norm attention under a mask, and a ReLU network."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.inner, self.outer = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.first, self.second = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """States (B, T, D); seen (B, 1 or T, T)."""
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, dim=-1))
        bias = torch.where(seen[:, None], 0.0, -1e9)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        x = self.first(x + F.dropout(self.out(mixed), self.dropout, self.training))
        inner = F.dropout(F.relu(self.inner(x)), self.dropout, self.training)
        return self.second(x + F.dropout(self.outer(inner), self.dropout, self.training))


class Sessions(nn.Module):
    """SEM: a [CLS] for each session beside the events, then a [CLS] over sessions, added to every event."""

    def __init__(self, dim: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.place, self.session = nn.Embedding(length + 1, dim), nn.Embedding(length + 1, dim)
        self.cls, self.top = nn.Parameter(torch.randn(dim) * 0.02), nn.Parameter(torch.randn(dim) * 0.02)
        self.scale = nn.Parameter(torch.full((dim,), 0.1))
        self.intra, self.inter = TransformerBlock(dim, heads, dropout), TransformerBlock(dim, heads, dropout)

    def forward(self, x: Tensor, session: Tensor) -> Tensor:
        """Events (B, L, D) that know the sessions (B, L)."""
        rows, length, dim = x.shape
        valid, slot = session != 0, torch.arange(1, length + 1)
        together = (session[:, :, None] == session[:, None, :]) & valid[:, None, :]
        place = (together & torch.ones(length, length, dtype=torch.bool).tril(-1)).sum(2)
        member = slot[None, :, None] == session[:, None, :]
        used = member.any(2)
        itself = torch.eye(length, dtype=torch.bool) & used[:, None]
        seen = torch.cat([torch.cat([itself, member], 2), torch.cat([member.transpose(1, 2), together], 2)], 1)
        hidden = torch.cat([self.cls.expand(rows, length, dim), x + self.place(place)], 1)
        summary = self.intra(hidden, seen)[:, :length]
        distance = (session.max(1, keepdim=True).values - slot).clamp(0, length)
        summary = torch.cat([self.top.expand(rows, 1, dim), summary + self.session(distance)], 1)
        mask = torch.cat([torch.ones(rows, 1, dtype=torch.bool), used], 1)
        return (x + self.scale * self.inter(summary, mask[:, None])[:, :1]) * valid[..., None]


class Ranker(nn.Module):
    """Embeddings and places, blocks, an MLP; with `hpgr` sessions, the mask of preferences and the two biases."""

    def __init__(self, args: argparse.Namespace, items: int, length: int) -> None:
        super().__init__()
        dim, heads = args.dim, args.heads
        self.dim, self.dropout, self.anchors, self.sigma = dim, args.dropout, args.anchors, args.sigma
        self.items = nn.Embedding(items, dim, padding_idx=0)
        self.frozen = nn.Embedding(items, dim, padding_idx=0).requires_grad_(False)
        self.places, self.times = nn.Embedding(length + 2, dim), nn.Embedding(2048, dim)
        self.action = nn.Parameter(torch.randn(dim) * 0.02)
        self.blocks = nn.ModuleList(TargetBlock(dim, heads, length, args.dropout) for _ in range(args.blocks))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Sequential(nn.Linear(dim, 64), nn.ReLU(), nn.Linear(64, 1))
        self.hpgr = args.model == "hpgr"
        if self.hpgr:
            self.sessions = Sessions(dim, heads, length, args.dropout)
            self.distance = nn.Parameter(torch.randn(length + 1) * 0.02)
            self.gap = nn.Parameter(torch.randn(129) * 0.02)

    def forward(self, row: dict[str, Tensor]) -> Tensor:
        """Logits (B, C)."""
        item, candidate, before = row["item"], row["candidate"], row["candidate_history"]
        valid, place = item != 0, torch.arange(item.shape[1])
        scale = math.sqrt(self.dim)
        x, c = scale * self.items(item), scale * (self.items(candidate) + self.action)
        seen = ((place < before[..., None]) & valid[:, None]).float()
        if self.hpgr:
            x = self.sessions(x, row["session"])
            seen = seen * self.preferences(item, candidate, seen)
            x_place, c_place = (place + 1)[None], before + 1
            x_age = F.pad(row["time"].diff(dim=1), (1, 0))
            last = row["time"].gather(1, (before - 1).clamp(min=0))
            c_age = torch.where(before > 0, row["candidate_time"] - last, 0)
        else:
            x_place, c_place = before.max(1, keepdim=True).values - place, torch.zeros_like(before)
            latest = row["candidate_time"].max(1, keepdim=True).values
            x_age, c_age = latest - row["time"], latest - row["candidate_time"]
        x = x + self.places(x_place.clamp(min=0)) + self.times(self.age(x_age))
        c = c + self.places(c_place) + self.times(self.age(c_age))
        x = F.dropout(x, self.dropout, self.training) * valid[..., None]
        c = F.dropout(c, self.dropout, self.training)
        past = (place[None, :] <= place[:, None])[None] & valid[:, None]
        biases = self.biases(row, place, before) if self.hpgr else None
        for index, block in enumerate(self.blocks):
            x, c = block(x, c, past.float(), seen, biases, last=index == len(self.blocks) - 1)
        return self.head(self.norm(c))[..., 0]

    def age(self, seconds: Tensor) -> Tensor:
        """Buckets of squared minutes."""
        return (seconds.clamp(min=0).float() / 60).sqrt().long().clamp(max=2047)

    def preferences(self, item: Tensor, candidate: Tensor, seen: Tensor) -> Tensor:
        """The mask (B, C, L) around the events most like each candidate."""
        with torch.no_grad():
            alike = self.frozen(candidate) @ self.frozen(item).transpose(1, 2)
            value, anchor = alike.masked_fill(seen == 0, -math.inf).topk(self.anchors, dim=2)
            distance = (torch.arange(item.shape[1]) - anchor[..., None]).abs().float()  # (B, C, K, L)
            nearest = distance.masked_fill(value[..., None] == -math.inf, 1e9).amin(2)
            mask = torch.exp(-((nearest / self.sigma) ** 2) / 2)
            return torch.where(nearest <= math.ceil(3 * self.sigma), mask, 0.0)

    def biases(self, row: dict[str, Tensor], place: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of events, of candidates, of a candidate to itself."""
        size = len(self.distance) - 1

        def bias(query_place: Tensor, query_time: Tensor) -> Tensor:
            apart = (query_place[:, :, None] - place[None, None]).clamp(0, size)
            gap = (query_time[:, :, None] - row["time"][:, None]).clamp(min=1).float()
            return (self.distance[apart] + self.gap[(gap.log() / 0.301).long().clamp(max=128)])[:, None]

        own = self.distance[0] + self.gap[0]
        return bias(place[None], row["time"]), bias(before, row["candidate_time"]), own


def main() -> None:
    """Trains for so many steps and prints how long one takes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--model", choices=["hstu_ranking", "hpgr"], required=True)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--anchors", type=int, default=3)
    parser.add_argument("--sigma", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    with np.load(args.rows) as stored:
        items, arrays = int(stored["num_items"]), {key: stored[key] for key in stored if key != "num_items"}
    row = {
        key: torch.from_numpy(value if value.dtype == np.float32 else value.astype(np.int64))
        for key, value in arrays.items()
    }
    model = Ranker(args, items, row["item"].shape[1])
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    seconds, loss = [], torch.zeros(())
    for _ in range(args.warmup + args.steps):
        begun = time.perf_counter()
        losses = F.binary_cross_entropy_with_logits(model(row), row["candidate_label_click"], reduction="none")
        loss = (losses * row["candidate_weight"]).sum() / row["candidate_weight"].sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
    report = {"peer": f"torch {torch.__version__}", "model": args.model, "loss": float(loss.detach())}
    print(json.dumps({**report, "seconds": statistics.median(seconds[args.warmup :])}))


if __name__ == "__main__":
    main()
