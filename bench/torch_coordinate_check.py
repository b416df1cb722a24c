"""Coordinate check of `moe_param transfer --format python` on a Transformer MoE in PyTorch (docs/parameterizations.md).

    python3 -m venv /tmp/torch-env && /tmp/torch-env/bin/pip install torch
    /tmp/torch-env/bin/python bench/torch_coordinate_check.py BUILD/bin/moe_param [mssp mup base ...]

A small base model gets settings; models along a regime's path get these times the exported multipliers ("base": the base model's
settings unchanged). Every model trains on the same tokens; printed is, for every activation, the slope of its root mean square over
widths in log-log, at initialisation and after the last step (the latter of its change), mean and standard error over seeds.
"""
import math
import os
import subprocess
import sys

import torch
import torch.nn.functional as F

VOCABULARY, LENGTH, BATCH, STEPS, SEEDS = 32, 16, 16, 8, 4
BASE = {"I": dict(N=64, M=4, Ne=32, K=2), "II": dict(N=64, M=8, Ne=16, K=4), "III": dict(N=64, M=8, Ne=32, K=4)}
FACTORS = (1, 2, 4, 8)
LR, EPS, DECAY = 3e-3, 1e-6, 0.1
HEAD = 16  # heads are added, they do not widen

ROLES = {r"^embed": "embedding", r"^final_norm": "final_norm", r"norm": "norm", r"\.q\.": "attention_q", r"\.k\.": "attention_k",
         r"\.v\.": "attention_v", r"\.o\.": "attention_o", r"router": "router", r"\.up$": "expert_up", r"\.gate$": "expert_gate",
         r"\.down$": "expert_down", r"shared_up": "shared_expert_up", r"shared_down": "shared_expert_down", r"^head": "unembedding"}


class RMSNorm(torch.nn.Module):
    def __init__(self, N):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(N))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-12)


def linear(fan_in, fan_out):
    layer = torch.nn.Linear(fan_in, fan_out, bias=False)
    torch.nn.init.normal_(layer.weight, std=fan_in**-0.5)
    return layer


class Attention(torch.nn.Module):
    def __init__(self, N):
        super().__init__()
        self.q, self.k, self.v, self.o = (linear(N, N) for _ in range(4))

    def forward(self, x):
        heads = [layer(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for layer in (self.q, self.k, self.v)]
        return self.o(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(-2))


class Experts(torch.nn.Module):
    """Top-K of M gated units with sigmoid gates, divided by K, beside one expert that is always active."""

    def __init__(self, N, M, Ne, K):
        super().__init__()
        self.K = K
        normal = lambda std, *shape: torch.nn.Parameter(std * torch.randn(*shape))
        self.router = linear(N, M)
        self.up, self.gate = normal(N**-0.5, M, N, Ne), normal(N**-0.5, M, N, Ne)
        self.down = normal(Ne**-0.5, M, Ne, N)
        self.shared_up, self.shared_down = linear(N, Ne), linear(Ne, N)
        self.seen = {}

    def forward(self, x):
        logits = self.router(x)
        active = torch.zeros_like(logits).scatter(-1, logits.topk(self.K, -1).indices, 1.0)
        unit = F.silu(torch.einsum("btn,mnh->btmh", x, self.gate)) * torch.einsum("btn,mnh->btmh", x, self.up)
        sum_of_experts = torch.einsum("btm,btmh,mhn->btn", active * logits.sigmoid(), unit, self.down) / self.K
        always = self.shared_down(torch.tanh(self.shared_up(x)))
        self.seen = {"router logits": logits, "hidden": unit, "experts' sum": sum_of_experts, "shared expert": always}
        return sum_of_experts + always


class Model(torch.nn.Module):
    def __init__(self, N, M, Ne, K, L, branch):
        super().__init__()
        self.branch = branch
        self.embed = torch.nn.Embedding(VOCABULARY, N)
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict({"norm_1": RMSNorm(N), "attention": Attention(N), "norm_2": RMSNorm(N),
                                 "moe": Experts(N, M, Ne, K)}) for _ in range(L))
        self.final_norm = RMSNorm(N)
        self.head = linear(N, VOCABULARY)

    def forward(self, tokens):
        x = self.embed(tokens)
        seen = {"embedding": x}
        for block in self.blocks:
            attention = block["attention"](block["norm_1"](x))
            x = x + self.branch * attention
            x = x + self.branch * block["moe"](block["norm_2"](x))
            seen["attention"] = attention
            seen.update(block["moe"].seen)
        seen["stream"] = x
        seen["output"] = self.head(self.final_norm(x))
        return seen


def exported(program, param, base, target, regime):
    sizes = lambda s: ",".join(f"{k}={v}" for k, v in s.items())
    text = subprocess.run([program, "transfer", "--format", "python", "--param", param, "--regime", regime, "--optimizer", "adamw",
                           "--base", sizes(base), "--target", sizes(target)], check=True, capture_output=True, text=True).stdout
    module = {}
    exec(compile(text, "exported", "exec"), module)
    return module


def base_std_(model, base):
    """Standard deviations of the base model, whatever the width: what scale_init_ multiplies."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("embed") or "norm" in name:
                continue
            fan_in = base["Ne"] if "down" in name else base["N"]
            p.copy_(torch.randn_like(p) * (1 / base["N"] if name.startswith("head") else fan_in**-0.5))


def train(program, param, regime, factor, seed):
    base = dict(BASE[regime], L=2)
    growing = {"I": ("N", "Ne"), "II": ("N", "M", "K"), "III": ("N", "M", "Ne", "K")}[regime]
    target = {k: v * factor if k in growing else v for k, v in base.items()}
    export = exported(program, "mup" if param == "base" else param, base, base if param == "base" else target, regime)
    torch.manual_seed(1000 * seed + factor)
    model = Model(**target, branch=export["BRANCH"])
    base_std_(model, base)
    export["scale_init_"](model, ROLES)
    optimizer = torch.optim.AdamW(export["parameter_groups"](model, ROLES, lr=LR, eps=EPS, weight_decay=DECAY), betas=(0.9, 0.99))
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(seed))
    wanted = (tokens + 1) % VOCABULARY
    rms = lambda t: t.detach().square().mean().sqrt().item()
    first, loss = None, math.nan
    for step in range(STEPS + 1):
        seen = model(tokens)
        if first is None:
            first = {k: v.detach() for k, v in seen.items()}
        loss = F.cross_entropy(seen["output"].flatten(0, 1), wanted.flatten())
        if step < STEPS:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {k: rms(v) for k, v in first.items()}, {k: rms(seen[k] - first[k]) for k in seen}, loss.item()


def slope(values):
    x = [math.log(f) for f in FACTORS]
    y = [math.log(v) for v in values]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def main():
    program, params = os.path.abspath(sys.argv[1]), sys.argv[2:] or ["mssp", "mup", "base"]
    for regime in BASE:
        for param in params:
            runs = [[train(program, param, regime, f, seed) for f in FACTORS] for seed in range(SEEDS)]
            losses = ", ".join(f"{sum(r[k][2] for r in runs) / SEEDS:.3f}" for k in range(len(FACTORS)))
            print(f"regime {regime}, {param}: loss after {STEPS} steps at N = {', '.join(str(64 * f) for f in FACTORS)}: {losses}")
            for name in runs[0][0][0]:
                cells = []
                for stage in (0, 1):
                    if not all(r[stage][name] for of_seed in runs for r in of_seed):
                        cells.append("zero")
                        continue
                    slopes = [slope([r[stage][name] for r in of_seed]) for of_seed in runs]
                    mean = sum(slopes) / SEEDS
                    error = math.sqrt(sum((s - mean) ** 2 for s in slopes) / (SEEDS - 1) / SEEDS)
                    cells.append(f"{mean:+.2f} +- {error:.2f}  ({runs[0][0][stage][name]:.3g} .. {runs[0][-1][stage][name]:.3g})")
                print(f"  {name:14s} at init {cells[0]:36s} change {cells[1]}", flush=True)


if __name__ == "__main__":
    main()
