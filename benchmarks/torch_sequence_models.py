"""SASRec and HSTU in PyTorch, as published for MovieLens-1M, on the same rows: the peer of `tfrec train`.

Follows the public research configuration of HSTU's authors (arXiv 2402.17152): right padding, the last `length` + 1
events of a user, 128 uniform negatives a position, cosine logits at temperature 0.05, AdamW 1e-3 (0.9, 0.98), batches
of 128 users, the last event of each user held out, full catalogue, history removed.

    python benchmarks/torch_sequence_models.py --data ${TFREC_DATA}/movielens-1m --model sasrec --epochs 10

Prints one line an epoch; the last line of stdout is one JSON document. `--ranks FILE.npz` keeps the rank of every
user's last movie, so that `benchmarks/quality.py movielens_1m` can pair it with ours.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody gives it


def read_histories(folder: Path) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], int]:
    """Users, their items (from 1) and times in exact order, and the number of movies in the catalogue."""
    movies = [line.split("::")[0] for line in (folder / "movies.dat").read_text("latin-1").splitlines()]
    rows = {int(movie): row for row, movie in enumerate(movies, start=1)}
    events = pl.read_parquet(folder / "events.parquet").sort("user_id", "position")
    groups = events.group_by("user_id", maintain_order=True).agg("movie_id", "timestamp")
    items = [np.array([rows[int(movie)] for movie in user]) for user in groups["movie_id"]]
    times = [np.array(user, np.int64) for user in groups["timestamp"]]
    return groups["user_id"].to_numpy(), items, times, len(movies)


def pad(rows: list[np.ndarray], length: int) -> Tensor:
    """The last `length` values of each row, right-padded with 0: (rows, length)."""
    out = np.zeros((len(rows), length), np.int64)
    for index, row in enumerate(rows):
        tail = row[-length:]
        out[index, : len(tail)] = tail
    return torch.from_numpy(out)


class SASRecBlock(nn.Module):
    """Normalised query, plain keys and values, residual on the query; then a ReLU feed-forward of the same width."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dim = dim
        self.attention = nn.MultiheadAttention(dim, 1, dropout=dropout, batch_first=True)
        self.feed = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, dim), nn.Dropout(dropout)
        )
        for weight in self.parameters():  # the published code draws all matrices of its blocks so
            if weight.dim() > 1:
                nn.init.xavier_normal_(weight)

    def forward(self, x: Tensor, blocked: Tensor, valid: Tensor, gaps: Tensor) -> Tensor:
        """States (B, L, D) after the block."""
        query = F.layer_norm(x, (self.dim,), eps=1e-8)
        x = query + self.attention(query, x, x, attn_mask=blocked, need_weights=False)[0]
        x = F.layer_norm(x, (self.dim,), eps=1e-8)
        return (x + self.feed(x)) * valid


class HSTUBlock(nn.Module):
    """SiLU attention without softmax, divided by a constant, with a position and a time bias, gated by U."""

    def __init__(self, dim: int, dropout: float, size: int) -> None:
        super().__init__()
        self.dim, self.size, self.dropout = dim, size, dropout
        self.uvqk = nn.Parameter(torch.randn(dim, 4 * dim) * 0.02)
        self.position = nn.Parameter(torch.randn(2 * size - 1) * 0.02)
        self.time = nn.Parameter(torch.randn(129) * 0.02)
        self.out = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.out.weight)

    def forward(self, x: Tensor, blocked: Tensor, valid: Tensor, gaps: Tensor) -> Tensor:
        """States (B, L, D) after the block."""
        length = x.shape[1]
        u, v, q, k = F.silu(F.layer_norm(x, (self.dim,), eps=1e-6) @ self.uvqk).split(self.dim, dim=-1)
        steps = torch.arange(length)
        bias = self.position[self.size - 1 + steps[None, :] - steps[:, None]] + self.time[gaps]
        scores = F.silu(q @ k.transpose(1, 2) + bias) / self.size
        mixed = scores.masked_fill(blocked, 0.0) @ v
        gated = F.dropout(u * F.layer_norm(mixed, (self.dim,), eps=1e-6), self.dropout, self.training)
        return (self.out(gated) + x) * valid


class SequenceModel(nn.Module):
    """Scaled item embeddings + learned positions -> blocks -> unit vectors."""

    def __init__(self, name: str, items: int, length: int, dim: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.dim, self.dropout = dim, dropout
        self.items = nn.Embedding(items + 1, dim, padding_idx=0)
        nn.init.trunc_normal_(self.items.weight, std=0.02, a=-0.04, b=0.04)
        self.positions = nn.Embedding(length + 11, dim)
        nn.init.trunc_normal_(self.positions.weight, std=dim**-0.5, a=-2 * dim**-0.5, b=2 * dim**-0.5)
        make = (
            (lambda: SASRecBlock(dim, dropout)) if name == "sasrec" else (lambda: HSTUBlock(dim, dropout, length + 11))
        )
        self.blocks = nn.ModuleList(make() for _ in range(blocks))

    def forward(self, items: Tensor, gaps: Tensor) -> Tensor:
        """Unit states (B, L, D) of right-padded items (B, L)."""
        length = items.shape[1]
        valid = (items != 0).unsqueeze(-1).float()
        x = self.items(items) * math.sqrt(self.dim) + self.positions.weight[:length]
        x = F.dropout(x, self.dropout, self.training) * valid
        blocked = torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=1)
        for block in self.blocks:
            x = block(x, blocked, valid, gaps)
        return F.normalize(x, dim=-1, eps=1e-6)


def time_gaps(times: Tensor, known: bool) -> Tensor:
    """Buckets (B, L, L) of the query's time minus the key's; `known`: the query's time is the next event's."""
    following = torch.cat([times[:, 1:], times[:, -1:]], dim=1) if known else times
    gap = (following[:, :, None] - times[:, None, :]).abs().clamp(min=1).float()
    return (gap.log() / 0.301).long().clamp(0, 128)


def sampled_softmax(states: Tensor, targets: Tensor, table: nn.Embedding, negatives: int) -> Tensor:
    """Mean over positions of the cross entropy among the target and `negatives` uniform items."""
    drawn = torch.randint(1, table.num_embeddings, (len(targets), negatives))
    scores = states @ F.normalize(table.weight, dim=-1, eps=1e-6).T / 0.05  # all, then pick: faster on a CPU
    positive, negative = scores.gather(1, targets[:, None]), scores.gather(1, drawn)
    negative = torch.where(drawn == targets[:, None], torch.tensor(-5e4), negative)
    return -F.log_softmax(torch.cat([positive, negative], dim=1), dim=1)[:, 0].mean()


@torch.no_grad()
def rank_last(
    model: SequenceModel, items: list[np.ndarray], times: list[np.ndarray], args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """Of each user: how many movies score above the last one, how many others equal it; the history is left out."""
    model.eval()
    better, equal = [], []
    table = F.normalize(model.items.weight, dim=-1, eps=1e-6)
    for start in range(0, len(items), 128):
        rows = items[start : start + 128]
        history = pad([row[:-1] for row in rows], args.length)
        lengths = (history != 0).sum(1)
        stamps = pad([row[:-1] for row in times[start : start + 128]], args.length)
        stamps = torch.cat([stamps, torch.zeros(len(rows), 1, dtype=torch.long)], 1)
        asked = torch.tensor([row[-1] if args.request_time else row[-2] for row in times[start : start + 128]])
        stamps[torch.arange(len(rows)), lengths] = asked
        gaps = time_gaps(stamps, args.request_time)[:, :-1, :-1]
        state = model(history, gaps)[torch.arange(len(rows)), lengths - 1]
        scores = state @ table.T
        scores[:, 0] = -torch.inf
        for index, row in enumerate(rows):
            target = scores[index, row[-1]].clone()
            scores[index, torch.from_numpy(row[:-1])] = -torch.inf
            better.append(int((scores[index] > target).sum()))
            equal.append(int((scores[index] == target).sum()) - 1)
    return np.array(better, np.int32), np.array(equal, np.int32)


def metrics_of(better: np.ndarray) -> dict[str, float]:
    """Recall and ndcg of ranks that begin at 0."""
    report = {}
    for k in (10, 50, 200):
        report[f"recall@{k}"] = float((better < k).mean())
        report[f"ndcg@{k}"] = float(np.where(better < k, 1 / np.log2(better + 2), 0).mean())
    return report


def main() -> None:
    """Trains, evaluates after each epoch, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", choices=["sasrec", "hstu"], required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--dim", type=int, default=50)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--negatives", type=int, default=128)
    parser.add_argument("--request-time", action="store_true", help="HSTU sees the time of the event that it predicts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=Path, help="where the ranks of the last movies are written (.npz)")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    users, items, times, catalogue = read_histories(args.data)
    model = SequenceModel(args.model, catalogue, args.length, args.dim, args.blocks, args.dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    rows = pad([row[:-1] for row in items], args.length + 1)
    stamps = pad([row[:-1] for row in times], args.length + 1)
    order = np.random.default_rng(args.seed)
    history = []
    for epoch in range(1, args.epochs + 1):
        model.train()
        started, losses = time.perf_counter(), []
        for batch in np.array_split(order.permutation(len(rows)), math.ceil(len(rows) / 128)):
            chosen = rows[batch]
            gaps = time_gaps(stamps[batch], args.request_time)[:, :-1, :-1]
            states = model(chosen[:, :-1], gaps)
            real = chosen[:, 1:] != 0
            loss = sampled_softmax(states[real], chosen[:, 1:][real], model.items, args.negatives)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        seconds = time.perf_counter() - started
        report = metrics_of(rank_last(model, items, times, args)[0]) if epoch % 5 == 0 or epoch == args.epochs else {}
        history.append({"epoch": epoch, "loss": float(np.mean(losses)), "seconds": round(seconds, 1), **report})
        print(json.dumps(history[-1]), flush=True)
    if args.ranks is not None:
        better, equal = rank_last(model, items, times, args)
        events = np.array([len(row) - 1 for row in items], np.int32)
        np.savez(args.ranks, user=users.astype(str), place=events, better=better, equal=equal)
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("data", "ranks")}
    print(json.dumps({"peer": f"torch {torch.__version__}", **settings, "epochs_run": history, **report}))


if __name__ == "__main__":
    main()
