"""Steps of a PyTorch module on one GPU, in the cases and the roofline of bench_gpu_network, which then runs too (docs/benchmarks.md).

    python3 bench/torch_gpu_networks.py [BUILD/bin/bench_gpu_network] [--seconds 100]
    python3 bench/torch_gpu_networks.py --device cpu --scale 32      the program itself, checked at small sizes where no GPU is

Module as in torch_networks.py. With top-K it is timed in four forms, three of them with tokens sorted by expert; every form plainly with
fused and foreach optimizers, and under torch.compile with the better of both; the best counts. Data and learning rates change no time.
"""
import argparse
import functools
import gc
import logging
import math
import operator
import shutil
import signal
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import torch
import torch._dynamo

from torch_networks import D, ManySoft, MoE

torch._logging.set_logs(dynamo=logging.ERROR, inductor=logging.ERROR)
torch._dynamo.config.fail_on_recompile_limit_hit = True  # rather than run eagerly under the name of compiled
C = 2  # what bench_gpu_network's data and loss come to: two classes, cross-entropy


@torch.compiler.disable
def room_of(count):
    """Tokens of the fullest expert, rounded up to 64 so that shapes, for which code is compiled, hardly ever change."""
    return -(-int(count.max()) // 64) * 64


class TopK(MoE):
    """Tokens sorted by expert, whose products are made as `how` says; the host waits for the device at most once a pass."""

    def __init__(self, N, M, Ne, K, how):
        super().__init__(N, M, Ne, K, "sorted", classes=C)
        self.how = how

    def sorted_experts(self, phi, r):
        logits, chosen = torch.topk(r, self.K, dim=1)
        expert, order = chosen.flatten().sort()
        token = order // self.K
        experts = torch.arange(self.M, device=r.device)
        first, end = torch.searchsorted(expert, experts), torch.searchsorted(expert, experts, right=True)
        out = getattr(self, self.how)(phi.index_select(0, token), expert, first, end)
        gate = torch.sigmoid(logits).flatten().index_select(0, order)
        return torch.zeros_like(phi).index_add(0, token, gate.unsqueeze(1) * out) / self.K

    def packed(self, rows, expert, first, end):
        """Padded to the fullest expert: one batched product each way."""
        room = room_of(end - first)
        place = expert * room + torch.arange(len(expert), device=rows.device) - first[expert]
        padded = rows.new_zeros(self.M * room, rows.shape[1]).index_copy(0, place, rows).view(self.M, room, -1)
        out = torch.bmm(torch.tanh(torch.bmm(padded, self.expert_in)), self.expert_out)
        return out.flatten(0, 1).index_select(0, place)

    def grouped(self, rows, expert, first, end):
        """PyTorch's own grouped product, which for float32 is a loop inside the library."""
        v = torch.tanh(torch._grouped_mm(rows, self.expert_in, offs=end.int()))
        return torch._grouped_mm(v, self.expert_out, offs=end.int())

    def loop(self, rows, expert, first, end):
        parts = rows.split((end - first).tolist())
        return torch.cat([torch.tanh(x @ w) @ u for x, w, u in zip(parts, self.expert_in.unbind(), self.expert_out.unbind())])


class Case(NamedTuple):
    name: str
    N: int
    M: int
    Ne: int
    K: int
    count: int = 1

    def text(self, optimizer, tf32):
        many = f"{self.count} networks, " if self.count > 1 else ""
        top = f", K {self.K}" if self.K < self.M else ""
        return f"{self.name}, {many}N {self.N}, M {self.M}, N_e {self.Ne}{top}, {optimizer}{', TF32' if tf32 else ''}"

    def forms(self):
        if self.count > 1:
            return ["batched"]
        return ["soft"] if self.K == self.M else ["packed", "grouped", "loop", "dense"]

    def network(self, form):
        if form == "batched":
            return ManySoft(self.count, self.N, self.M, self.Ne, classes=C)
        if form in ("soft", "dense"):
            return MoE(self.N, self.M, self.Ne, self.K, form, classes=C)
        return TopK(self.N, self.M, self.Ne, self.K, form)

    def flops(self, active, P):
        """As work_of in bench_gpu_network.cu, of so many active experts a token."""
        return self.count * 2 * P * self.N * (6 * active * self.Ne + 3 * self.M + 2 * D + 3 * C)

    def bytes(self, optimizer, P):
        weights = self.N * (D + self.M + 2 * self.M * self.Ne + C)
        kept = 3 if optimizer == "adam" else 1
        return self.count * (4 * weights * (2 + 2 * kept) + 4 * P * (6 * self.K * self.Ne + 8 * self.N + 4 * self.M))


CASES = [
    Case("regime I", 4096, 16, 4096, 16),
    Case("regime II", 4096, 2048, 16, 2048),
    Case("top-K", 2048, 256, 1024, 8),
    Case("regime II", 256, 128, 8, 128, 64),
    Case("regime III", 256, 128, 128, 128, 64),
]


def smaller(case, scale):
    if scale == 1:
        return case
    less = lambda n: max(4, n // scale)
    M = less(case.M)
    return Case(case.name, less(case.N), M, less(case.Ne), M if case.K == case.M else 2, less(case.count) if case.count > 1 else 1)


class OutOfTime(Exception):
    pass


def loss_of(f, y):
    networks = f.numel() // (C * len(y))
    return torch.nn.functional.cross_entropy(f.flatten(0, -2), y.repeat(networks), reduction="sum") / len(y)


class Bench:
    def __init__(self, device, scale, until):
        self.device, self.scale, self.P, self.until = device, scale, max(4, 4096 // scale), until
        with torch.device(device):
            self.x, self.y = torch.randn(self.P, D), torch.randint(0, C, (self.P,))

    @functools.cache
    def network(self, case, form, compiled=False):
        """One of every kind for all rules, so that each is compiled once for each kind of product."""
        if compiled:
            return torch.compile(self.network(case, form), dynamic=False)
        with torch.device(self.device):
            return case.network(form)

    def now(self):
        """A time stamp in the order of the device's work."""
        if self.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def times(self, f, count):
        stamps = [self.now()]
        for _ in range(count):
            f()
            stamps.append(self.now())
        if self.device == "cpu":
            return [b - a for a, b in zip(stamps, stamps[1:])]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in zip(stamps, stamps[1:])]

    def measure_card(self):
        """What the card does at best, as measured_card in bench_gpu_network.cu: (bytes a second, {TF32 on: flops a second})."""
        n = max(256, 8192 // self.scale)
        with torch.device(self.device):
            source, target = torch.randn(2**28 // self.scale), torch.empty(2**28 // self.scale)
            a, b, c = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
        best = lambda f: min(self.times(f, 7)[1:])
        self.bytes_a_second = 8 * source.numel() / best(lambda: target.copy_(source))
        self.flops_a_second = {}
        for tf32 in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            self.flops_a_second[tf32] = 2 * n**3 / best(lambda: torch.mm(a, b, out=c))
        name = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        print(f"torch {torch.__version__}, {name}: copies {self.bytes_a_second / 1e9:.0f} GB/s, products "
              f"{self.flops_a_second[False] / 1e12:.1f} TF/s in float32, {self.flops_a_second[True] / 1e12:.1f} with TF32; P = {self.P}",
              flush=True)

    def step_seconds(self, case, form, optimizer, fused, compiled):
        net = self.network(case, form, compiled)
        rule = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](
            net.parameters(), lr=1e-4, **({"fused": True} if fused else {"foreach": True}))

        def step():
            rule.zero_grad(set_to_none=True)
            loss_of(net(self.x), self.y).backward()
            rule.step()

        try:
            self.times(step, 2)
            [one] = self.times(step, 1)
            return statistics.median(self.times(step, min(15, max(5, int(0.6 / one)))))
        finally:
            rule.zero_grad(set_to_none=True)

    def step_within(self, limit, *form):
        """As step_seconds, interrupted after so many seconds: what is compiled could take any time."""

        def out_of_time(*_):
            raise OutOfTime(f"after {limit:.0f} s")

        signal.signal(signal.SIGALRM, out_of_time)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            return self.step_seconds(*form)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def attempt(self, case, form, optimizer, fused, compiled):
        """Median seconds a step, infinite where this form cannot be run or takes too long."""
        how = f"{form}, {'compiled' if compiled else 'eager'}{', fused' if fused else ', foreach'}"
        left = min(25, self.until - time.perf_counter())
        seconds, why = math.inf, "no time left"
        if left > 1:
            try:
                seconds = self.step_within(left, case, form, optimizer, fused, compiled)
            except Exception as error:  # memory, a version that lacks or cannot compile this form, time
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()
        print(f"    {how}: " + (f"{1e3 * seconds:.3f} ms" if seconds < math.inf else f"not run: {why}"), flush=True)
        return seconds, how

    def row(self, case, optimizer, tf32):
        if time.perf_counter() > self.until:
            print(f"{case.text(optimizer, tf32)}: not run: no time left", flush=True)
            return
        torch.backends.cuda.matmul.allow_tf32 = tf32
        rate = self.flops_a_second[tf32]
        best, seconds_of = (math.inf, "no form ran"), operator.itemgetter(0)
        for form in case.forms():
            least = case.flops(case.M if form == "dense" else case.K, self.P) / rate
            if least > best[0]:
                print(f"    {form}: not run: its products alone take {1e3 * least:.0f} ms at the card's rate")
                continue
            fused, foreach = (self.attempt(case, form, optimizer, f, False) for f in (True, False))
            best = min(best, fused, foreach, key=seconds_of)
            if form == "loop":
                print("    loop, compiled: not run: torch.compile would unroll all experts, whose shapes change at every step")
            else:
                best = min(best, self.attempt(case, form, optimizer, fused[0] <= foreach[0], True), key=seconds_of)
        seconds, how = best
        bytes, flops = case.bytes(optimizer, self.P), case.flops(case.K, self.P)
        of_memory, of_products = bytes / self.bytes_a_second, flops / rate
        print(f"{case.text(optimizer, tf32):<64} {1e3 * seconds:>9.3f} ms  {flops / seconds / 1e12:>6.1f} TF/s  "
              f"{100 * max(of_memory, of_products) / seconds:>5.1f} % of the roofline, bound by "
              f"{'memory' if of_memory > of_products else 'products'} ({bytes:.3g} bytes, {flops:.3g} flops)  {how}",
              flush=True)


def check(device):
    """Every form against the dense one and every network of a batch against its own: outputs and gradients, at a small size."""
    N, M, Ne, K, count, P = 48, 8, 16, 3, 3, 160
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.device(device):
        x, y = torch.randn(P, D), torch.randint(0, C, (P,))
        dense = MoE(N, M, Ne, K, "dense", classes=C)
        soft = MoE(N, M, Ne, M, "soft", classes=C)
        every = MoE(N, M, Ne, M, "dense", classes=C)  # top-K of all experts is soft routing
        batch = ManySoft(count, N, M, Ne, classes=C)
        forms = {how: TopK(N, M, Ne, K, how) for how in ("packed", "grouped", "loop")}

    def stacked(name, w):  # the layout of dense forms as that of sorted ones
        if name == "expert_in":
            return w.view(N, M, Ne).transpose(0, 1)
        return w.view(M, Ne, N) if name == "expert_out" else w

    def found(net):
        f = net(x)
        loss_of(f, y).backward()
        return {"f": f.detach(), **{name: w.grad for name, w in net.named_parameters()}}

    def compare(what, one, other):
        # Sums of at most P numbers of every product, each off by half an epsilon, through four products and as many elementwise steps.
        for name, b in other.items():
            off, allowed = (one[name] - b).abs().max().item(), 8 * P * 2.0**-24 * b.abs().max().item()
            if not off <= allowed:
                print(f"wrong: {what}, {name}: off by {off:.2g}, allowed {allowed:.2g}", flush=True)
                sys.exit(1)

    reference = {name: stacked(name, w) for name, w in found(dense).items()}
    for how, net in forms.items():
        with torch.no_grad():
            for name, w in net.named_parameters():
                w.copy_(stacked(name, getattr(dense, name)))
        try:
            of_form = found(net)
        except (AttributeError, RuntimeError) as error:  # a version without this product for float32
            print(f"{how}: not checked: {error}")
            continue
        compare(how, of_form, reference)
    with torch.no_grad():
        for name, w in every.named_parameters():
            w.copy_(getattr(soft, name))
        for name, w in batch.named_parameters():
            w[1].copy_(getattr(soft, name))
    alone = found(soft)
    compare("dense with K = M", found(every), alone)
    compare("batched", {name: w[1] for name, w in found(batch).items()}, alone)
    print("forms checked against each other: outputs and gradients agree to rounding", flush=True)


def run_ours(bench):
    by_line = ["stdbuf", "-oL"] if shutil.which("stdbuf") else []
    for what in ("steps", "many"):
        print(f"{bench} {what}", flush=True)
        try:
            done = subprocess.run([*by_line, bench, what], timeout=150)
            if done.returncode:
                print(f"{what}: ended with status {done.returncode}", flush=True)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"{what}: {error}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", nargs="?", help="bench_gpu_network, to be run afterwards")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--scale", type=int, default=1, help="divide all sizes by this, to check the program")
    parser.add_argument("--seconds", type=float, default=100, help="for PyTorch; what is left then is not run")
    args = parser.parse_args()
    until = time.perf_counter() + args.seconds
    check(args.device)
    bench = Bench(args.device, args.scale, until)
    bench.measure_card()
    cases = [smaller(case, args.scale) for case in CASES]
    for tf32 in (False, True):
        for case in cases:
            for optimizer in ("sgd", "adam") if case.count == 1 else ("adam",):
                bench.row(case, optimizer, tf32)
    bench.network.cache_clear()  # ours needs the memory
    gc.collect()
    if args.device == "cuda":
        torch.cuda.empty_cache()
    if args.bench:
        run_ours(args.bench)


if __name__ == "__main__":
    main()
