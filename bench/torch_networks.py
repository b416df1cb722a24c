"""Step times of the finite trainer against a PyTorch module, side by side in one run (docs/benchmarks.md).

    python3 -m venv /tmp/torch-env && /tmp/torch-env/bin/pip install torch
    /tmp/torch-env/bin/python bench/torch_networks.py BUILD/bin/bench_network [part of a case's name ...]

The module has its experts stacked into one product each way. With top-K it is timed in two forms, dense with zero gates and sorted by
expert into a padded batch of small products, and the faster one counts; every form is timed plainly and under torch.compile.
"""
import subprocess
import sys
import time

import torch

torch.manual_seed(0)
P, D, C = 64, 64, 10


def sizes(regime, N):
    M = 4 if regime == "I" else N // 2
    Ne = 8 if regime == "II" else N // 2
    return M, Ne


class MoE(torch.nn.Module):
    """(T1)-(T5) with tanh and sigmoid gates; `form` is soft, dense or sorted."""

    def __init__(self, N, M, Ne, K, form, classes=C):
        super().__init__()
        self.M, self.Ne, self.K, self.form = M, Ne, K, form
        normal = lambda *shape, std: torch.nn.Parameter(std * torch.randn(*shape))
        self.w_in = normal(D, N, std=D**-0.5)
        self.router = normal(N, M, std=N**-0.5)
        if form == "sorted":
            self.expert_in = normal(M, N, Ne, std=N**-0.5)
            self.expert_out = normal(M, Ne, N, std=Ne**-0.5)
        else:
            self.expert_in = normal(N, M * Ne, std=N**-0.5)
            self.expert_out = normal(M * Ne, N, std=Ne**-0.5)
        self.readout = normal(N, classes, std=1 / N)

    def forward(self, x):
        phi = torch.tanh(x @ self.w_in)
        r = phi @ self.router
        if self.form == "sorted":
            return self.sorted_experts(phi, r) @ self.readout
        gate = torch.sigmoid(r)
        if self.form == "dense":
            chosen = torch.topk(r, self.K, dim=1).indices
            gate = gate * torch.zeros_like(r).scatter_(1, chosen, 1.0)
        v = torch.tanh(phi @ self.expert_in).view(-1, self.M, self.Ne)
        y = (gate.unsqueeze(2) * v).view(-1, self.M * self.Ne) @ self.expert_out / self.K
        return y @ self.readout

    def sorted_experts(self, phi, r):
        """Tokens sorted by expert, padded to the fullest expert: batched products of (tokens, N) with (N, N_e)."""
        logits, chosen = torch.topk(r, self.K, dim=1)
        expert, order = chosen.flatten().sort()
        token = order // self.K
        count = torch.bincount(expert, minlength=self.M)
        first = count.cumsum(0) - count
        place = torch.arange(expert.numel()) - first[expert]
        gathered = phi.new_zeros(self.M, int(count.max()), phi.shape[1])
        gathered[expert, place] = phi[token]
        v = torch.tanh(torch.bmm(gathered, self.expert_in))
        out = torch.bmm(v, self.expert_out)[expert, place]
        gate = torch.sigmoid(logits).flatten()[order]
        return torch.zeros_like(phi).index_add(0, token, gate.unsqueeze(1) * out) / self.K


class ManySoft(torch.nn.Module):
    """`count` soft networks in one batched product each way."""

    def __init__(self, count, N, M, Ne, classes=C):
        super().__init__()
        self.shape = count, M, Ne
        normal = lambda *shape, std: torch.nn.Parameter(std * torch.randn(count, *shape))
        self.w_in = normal(D, N, std=D**-0.5)
        self.router = normal(N, M, std=N**-0.5)
        self.expert_in = normal(N, M * Ne, std=N**-0.5)
        self.expert_out = normal(M * Ne, N, std=Ne**-0.5)
        self.readout = normal(N, classes, std=1 / N)

    def forward(self, x):
        count, M, Ne = self.shape
        phi = torch.tanh(torch.matmul(x, self.w_in))
        gate = torch.sigmoid(torch.bmm(phi, self.router))
        v = torch.tanh(torch.bmm(phi, self.expert_in)).view(count, -1, M, Ne)
        y = torch.bmm((gate.unsqueeze(3) * v).view(count, -1, M * Ne), self.expert_out) / M
        return torch.bmm(y, self.readout)


def optimizer_of(name, parameters, fused):
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=1e-3, fused=fused)
    return torch.optim.Adam(parameters, lr=1e-4, fused=fused)


def best_step(models, optimizer, between, many=0):
    """Best seconds a step over fused and plain optimizers, eager and compiled, of models that make one step together.

    `between` is called after every form: there our own program is timed, so that both have the same chances on a noisy machine.
    """
    x, y = torch.randn(P, D), torch.randint(0, C, (P,))
    best, how = float("inf"), ""
    for compiled in (False, True):
        for fused in (True, False):
            nets = [make() for make in models]
            opts = [optimizer_of(optimizer, net.parameters(), fused) for net in nets]
            calls = [torch.compile(net, dynamic=False) if compiled else net for net in nets]

            def step():
                for call, opt in zip(calls, opts):
                    opt.zero_grad(set_to_none=True)
                    f = call(x)
                    if many:
                        loss = torch.nn.functional.cross_entropy(f.flatten(0, 1), y.repeat(many), reduction="sum") / P
                    else:
                        loss = torch.nn.functional.cross_entropy(f, y)
                    loss.backward()
                    opt.step()

            try:
                for _ in range(3):
                    step()
                times = []
                until = time.perf_counter() + 1.5
                while len(times) < 5 or time.perf_counter() < until:
                    start = time.perf_counter()
                    step()
                    times.append(time.perf_counter() - start)
            except Exception as error:  # a form that this version cannot compile
                print(f"    not run: {'compiled' if compiled else 'eager'}: {type(error).__name__}", file=sys.stderr)
                break
            seconds = sorted(times)[len(times) // 2]
            between()
            if seconds < best:
                best, how = seconds, ("compiled" if compiled else "eager") + (", fused" if fused else "")
    return best, how


def ours(bench, *arguments):
    out = subprocess.run([bench, *map(str, arguments)], check=True, capture_output=True, text=True).stdout
    return float(out.split(" s/step")[0].split()[-1])


class Ours:
    """Our benchmark as a call that keeps the best time so far."""

    def __init__(self, *command):
        self.command, self.best = command, float("inf")

    def __call__(self):
        self.best = min(self.best, ours(*self.command))


def single(bench, regime, N, optimizer, routing):
    M, Ne = sizes(regime, N)
    K = M if routing == "soft" else max(1, M // 4)
    forms = ["soft"] if routing == "soft" else ["dense", "sorted"]
    mine = Ours(bench, "step", regime, N, optimizer, routing)
    theirs, how = min(
        (lambda t: (t[0], f"{form}, {t[1]}"))(best_step([lambda f=form: MoE(N, M, Ne, K, f)], optimizer, mine)) for form in forms)
    flops = 2 * P * N * (6 * K * Ne + 3 * M + 2 * D + 3 * C)
    print(f"| {regime} {N} | {optimizer} | {routing} | {theirs * 1e3:.2f} ms ({how}) | {mine.best * 1e3:.2f} ms | "
          f"{flops / mine.best / 1e9:.0f} | {theirs / mine.best:.2f} |", flush=True)


def many(bench, count, N, optimizer):
    M, Ne = sizes("II", N)
    mine = Ours(bench, "many", N, count, optimizer, 60)
    one = best_step([lambda: MoE(N, M, Ne, M, "soft")] * count, optimizer, mine)
    batched = best_step([lambda: ManySoft(count, N, M, Ne)], optimizer, mine, many=count)
    theirs, how = min((one[0], "in turn, " + one[1]), (batched[0], "batched, " + batched[1]))
    print(f"| {count} x II {N} | {optimizer} | soft | {theirs * 1e3:.2f} ms ({how}) | {mine.best * 1e3:.2f} ms | | "
          f"{theirs / mine.best:.2f} |", flush=True)


def main():
    bench, wanted = sys.argv[1], sys.argv[2:]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, P = {P}, float32")
    print("| network | rule | routing | PyTorch, best form | ours | ours GF/s | ratio |\n|---|---|---|---|---|---|---|")
    for regime, N in (("II", 256), ("II", 1024), ("III", 256), ("III", 512), ("I", 1024), ("I", 4096)):
        for optimizer in ("sgd", "adam"):
            for routing in ("soft", "topk"):
                name = f"{regime}-{N}-{optimizer}-{routing}"
                if not wanted or any(name.startswith(part) for part in wanted):
                    single(bench, regime, N, optimizer, routing)
    if not wanted or "many" in wanted:
        for optimizer in ("sgd", "adam"):
            many(bench, 16, 256, optimizer)


if __name__ == "__main__":
    main()
