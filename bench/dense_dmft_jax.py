"""The limit of a dense network by damped Monte Carlo iteration in JAX, beside dmft_solve, in one run (docs/benchmarks.md).

    python3 -m venv /tmp/jax-env && /tmp/jax-env/bin/pip install jax h5py matplotlib
    /tmp/jax-env/bin/python bench/dense_dmft_jax.py BUILD/bin/dmft_solve --steps 25 --reference /tmp/reference25.h5

Regime I with M = K = 1, a constant gate and the post-activation equal to the activation is the network of three hidden layers of
Bordelon and Pehlevan (arXiv:2205.09653). Written here from the equations of that paper, in discrete time (gradient descent, gamma_0 = 1):
for layers l = 1, 2, 3, samples mu, times t, and Delta(t) = (y - f(t))/P,

    h^l(t) = u^l(t) + sum_{s<t}  [A^{l-1}(t,s) + eta Phi^{l-1}(t,s) Delta(s)] g^l(s),     u^l ~ GP(0, Phi^{l-1})
    z^l(t) = r^l(t) + sum_{s<=t} [B^l(t,s) + eta G^{l+1}(t,s) Delta(s) 1(s<t)] phi(h^l(s)), r^l ~ GP(0, G^{l+1}),  g^l = phi'(h^l) z^l
    Phi^l = <phi(h^l) phi(h^l)>,  G^l = <g^l g^l>,  A^l = <d phi(h^l)/d r^l>,  B^{l-1} = <d g^l/d u^l>
    f(t) = <d phi(h^3(t))/d w> + eta sum_{s<t} Phi^3(t,s) Delta(s),      G^4 = 1, B^3 = 0: r^3 = w, one number for all times
    Phi^0 = x^T x/D,  A^0 = 0

All kernels and responses are unknowns; fields are sampled given them, estimate them anew, and the new estimates are mixed in with a
damping factor. Responses are means of the samples' Jacobians; `--responses probes` takes one random direction a sample instead, which is
not in the paper but in our kernel iteration, to see how much of the difference that is.
"""
import argparse
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np

P, D = 10, 12


def problem(seed=3):
    """Inputs (P, D) of mean square one, targets +-1 (P)."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((P, D))
    x *= np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
    return x, np.where(np.arange(P) % 2 == 0, 1.0, -1.0)


def masks(steps):
    """(n, n) over (time, sample): earlier times; earlier and present ones."""
    time_of = np.repeat(np.arange(steps + 1), P)
    return jnp.asarray(time_of[:, None] > time_of[None, :]), jnp.asarray(time_of[:, None] >= time_of[None, :])


def paths(u, r, to_h, to_z):
    """Fields of one site (n): phi(h), g, marched through time."""
    n = u.shape[0]

    def step(carry, t):
        phi, g = carry
        rows = partial(jax.lax.dynamic_slice_in_dim, start_index=t * P, slice_size=P)
        h = rows(u) + rows(to_h) @ g
        phi = jax.lax.dynamic_update_slice_in_dim(phi, jnp.tanh(h), t * P, 0)
        z = rows(r) + rows(to_z) @ phi
        g = jax.lax.dynamic_update_slice_in_dim(g, (1 - jnp.tanh(h) ** 2) * z, t * P, 0)
        return (phi, g), None

    (phi, g), _ = jax.lax.scan(step, (jnp.zeros(n), jnp.zeros(n)), jnp.arange(n // P))
    return phi, g


def root(kernel):
    value, vector = jnp.linalg.eigh(kernel)
    return vector * jnp.sqrt(jnp.maximum(value, 0))


def jacobian_means(u, r, to_h, to_z, wanted, chunk):
    """<d phi/d r>, <d g/d u> as (n, n), those that are wanted; samples in chunks to bound the memory. With diagonal matrices
    D1 = phi''(h) z and D2 = phi'(h) of a sample, the derivatives of the equations above are linear,

        dh = du + to_h dg ,  dz = dr + to_z D2 dh ,  dg = D1 dh + D2 dz ,

    so that dh = L^-1 (du + to_h D2 dr) with L = 1 - to_h (D1 + D2 to_z D2), which causality makes unit triangular.
    """
    n = u.shape[1]

    def of_sample(u, r):
        phi, g = paths(u, r, to_h, to_z)
        d2 = 1 - phi**2
        of_h = d2[:, None] * to_z * d2[None, :] - jnp.diag(2 * phi * g)  # dg/dh of all earlier times; phi'' z = -2 phi g
        right = jnp.concatenate(
            [m for name, m in (("A", to_h * d2[None, :]), ("B", jnp.eye(n))) if name in wanted], axis=1)
        dh = jax.scipy.linalg.solve_triangular(jnp.eye(n) - to_h @ of_h, right, lower=True, unit_diagonal=True)
        out = {}
        if "A" in wanted:
            out["A"] = d2[:, None] * dh[:, :n]
        if "B" in wanted:
            out["B"] = of_h @ dh[:, -n:]
        return out

    def of_chunk(total, ur):
        return jax.tree.map(lambda a, b: a + b.sum(0), total, jax.vmap(of_sample)(*ur)), None

    zero = {name: jnp.zeros((n, n)) for name in wanted}
    total, _ = jax.lax.scan(of_chunk, zero, (u.reshape(-1, chunk, n), r.reshape(-1, chunk, n)))
    return jax.tree.map(lambda a: a / u.shape[0], total)


def probe_means(key, u, r, to_h, to_z, wanted):
    """The same from one random direction for each sample and field."""
    p_u, p_r = jax.random.normal(key, (2, *u.shape))

    def tangents(u, r, p_u, p_r):
        return jax.jvp(lambda u, r: paths(u, r, to_h, to_z), (u, r), (p_u, p_r))[1]

    d_phi, d_g = jax.vmap(tangents)(u, r, p_u, p_r)
    out = {"A": d_phi.T @ p_r / u.shape[0], "B": d_g.T @ p_u / u.shape[0]}
    return {name: out[name] for name in wanted}


@partial(jax.jit, static_argnames=("samples", "steps", "responses", "chunk"))
def iterate(key, k, x_gram, y, eta, samples, steps, responses, chunk):
    """One iteration: new estimates of all kernels and responses, and f (T+1, P) that the old ones give."""
    n = (steps + 1) * P
    earlier, causal = masks(steps)

    def output(f, t):  # f(t) of all earlier Delta, which the kernels determine
        delta = jnp.where(jnp.arange(n) < t * P, jnp.tile(y, steps + 1) - f, 0) / P
        row = partial(jax.lax.dynamic_slice_in_dim, start_index=t * P, slice_size=P)
        return jax.lax.dynamic_update_slice_in_dim(f, row(k["readout"]) + eta * row(k["Phi3"]) @ delta, t * P, 0), None

    f, _ = jax.lax.scan(output, jnp.zeros(n), jnp.arange(steps + 1))
    learned = eta * (jnp.tile(y, steps + 1) - f) / P
    features = {0: jnp.tile(x_gram, (steps + 1, steps + 1)), 1: k["Phi1"], 2: k["Phi2"]}
    gradients = {2: k["G2"], 3: k["G3"], 4: jnp.ones((n, n))}
    new = {}
    for layer in (1, 2, 3):
        key, key_u, key_r, key_p = jax.random.split(key, 4)
        u = jax.random.normal(key_u, (samples, n)) @ root(features[layer - 1]).T
        if layer == 3:
            r = jnp.repeat(jax.random.normal(key_r, (samples, 1)), n, axis=1)
        else:
            r = jax.random.normal(key_r, (samples, n)) @ root(gradients[layer + 1]).T
        to_h = jnp.where(earlier, features[layer - 1] * learned, 0)
        to_z = jnp.where(earlier, gradients[layer + 1] * learned, 0)
        if layer > 1:
            to_h += jnp.where(earlier, k[f"A{layer - 1}"], 0)
        if layer < 3:
            to_z += jnp.where(causal, k[f"B{layer}"], 0)
        phi, g = jax.vmap(paths, (0, 0, None, None))(u, r, to_h, to_z)
        new[f"Phi{layer}"] = phi.T @ phi / samples
        if layer > 1:
            new[f"G{layer}"] = g.T @ g / samples
        wanted = {1: ("A",), 2: ("A", "B"), 3: ("B",)}[layer]
        if responses == "jacobians":
            means = jacobian_means(u, r, to_h, to_z, wanted, chunk)
        else:
            means = probe_means(key_p, u, r, to_h, to_z, wanted)
        if "A" in wanted:
            new[f"A{layer}"] = jnp.where(earlier, means["A"], 0)
        if "B" in wanted:
            new[f"B{layer - 1}"] = jnp.where(causal, means["B"], 0)
        if layer == 3:
            of_w = lambda u, r: jax.jvp(lambda r: paths(u, r, to_h, to_z)[0], (r,), (jnp.ones(n),))[1]
            new["readout"] = jax.vmap(of_w)(u, r).mean(0)
    return new, f.reshape(steps + 1, P)


def initial_kernels(key, x_gram, samples, steps):
    """Of a network that does not learn: kernels of t = 0 at all times, no responses."""
    tile = lambda a: jnp.tile(a, (steps + 1, steps + 1))
    k, phi_gram, slopes = {}, x_gram, {}
    for layer in (1, 2, 3):
        key, key_u = jax.random.split(key)
        h = jax.random.normal(key_u, (64 * samples, P)) @ root(phi_gram).T
        phi_gram = jnp.tanh(h).T @ jnp.tanh(h) / h.shape[0]
        slope = 1 - jnp.tanh(h) ** 2
        slopes[layer] = slope.T @ slope / h.shape[0]
        k[f"Phi{layer}"] = tile(phi_gram)
    k["G3"] = tile(slopes[3])
    k["G2"] = tile(slopes[3] * slopes[2])
    n = (steps + 1) * P
    k |= {name: jnp.zeros((n, n)) for name in ("A1", "A2", "B1", "B2")}
    return k | {"readout": jnp.zeros(n)}


def loss_of(f, y):
    return 0.5 * np.mean((f - y) ** 2, axis=-1)


def solve(x, y, a, seed):
    """Kernels, f of every iteration [iteration, t, mu], seconds of every iteration without compilation."""
    key, first = jax.random.split(jax.random.key(seed))
    x_gram, target, eta = jnp.asarray(x @ x.T / D, jnp.float32), jnp.asarray(y, jnp.float32), jnp.float32(a.eta)
    k = initial_kernels(first, x_gram, a.samples, a.steps)
    shape = {"samples": a.samples, "steps": a.steps, "responses": a.responses, "chunk": a.chunk}
    step = iterate.lower(key, k, x_gram, target, eta, **shape).compile()
    fs, seconds = [], []
    for _ in range(a.iterations):
        key, now = jax.random.split(key)
        start = time.perf_counter()
        new, f = step(now, k, x_gram, target, eta)
        k = jax.block_until_ready(jax.tree.map(lambda old, fresh: (1 - a.damping) * old + a.damping * fresh, k, new))
        seconds.append(time.perf_counter() - start)
        fs.append(np.asarray(f))
        print(f"  iteration {len(fs)}: {seconds[-1]:.2f} s, last loss {loss_of(fs[-1], y)[-1]:.5f}", file=sys.stderr)
    return k, np.array(fs), seconds


def read(limit):
    """Loss, its standard error, kernels at the last step of a result file."""
    with h5py.File(limit) as file:
        kernels = {name: file[f"limit/kernels/{name}"][0] for name in ("Phi", "GvGv", "DD", "ghatghat")}
        return file["limit/loss"][:], file["limit/loss_sem"][:], kernels


def ours(program, x, y, a, method, size, out, seed=0):
    """The same problem by dmft_solve, size "neurons x replicas": a result file; wall seconds of the whole program."""
    neurons, replicas = map(int, size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.h5"
        with h5py.File(data, "w") as file:
            file["x"], file["y"] = x, y[:, None]
        settings = {
            "model.regime": "I", "model.param": "mup", "model.experts": 1, "model.gate": "constant",
            "model.activation": "tanh", "model.post_activation": "tanh", "model.expert_width_per_width": 1,
            "optimizer.name": "sgd", "optimizer.lr": a.eta, "data.source": data, "data.train": P, "data.test": 0,
            "data.normalize": "none", "training.loss": "mse", "training.steps": a.steps,
            "sampling.method": method, "sampling.neurons": neurons, "sampling.hidden": neurons,
            "sampling.replicas": replicas, "sampling.seed": seed,
            "output.observables": "none", "output.kernels_at": f"[{a.steps}]"}  # fmt: skip
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        start = time.perf_counter()
        run = subprocess.run([program, "--out", out, "--quiet", *sets], capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if run.returncode != 0:
            sys.exit(f"{program}: {run.stderr}")
        return seconds


def last_kernels(k, f, y):
    """Of a solution of `solve`, in the names of dmft_solve; their D and ghat carry Delta."""
    delta = (y - f) / P
    block = lambda name: np.asarray(k[name])[-P:, -P:]
    both = np.outer(delta, delta)
    return {"Phi": block("Phi1"), "GvGv": block("Phi2"), "DD": both * block("G3"), "ghatghat": both * block("G2")}


def rms(a):
    return float(np.sqrt(np.mean(np.square(a))))


def draw_times(table, out):
    """Wall time against T of all rows "| T | solver | seconds s |" of a file that holds this program's tables."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "validation/python"))
    from moe_dmft import style

    times = {}
    for line in Path(table).read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:4]]
        if len(cells) == 3 and cells[0].isdigit() and cells[2].endswith(" s"):
            times.setdefault(cells[1], []).append((int(cells[0]), float(cells[2][:-2])))
    with style.style():
        figure, axes = style.new_figure()
        ax = axes[0, 0]
        for (solver, points), color, marker in zip(times.items(), style.CYCLE, style.MARKERS):
            ax.loglog(*zip(*sorted(points)), color=color, marker=marker, label=solver)
        steps = sorted({step for points in times.values() for step, _ in points})
        ax.set_xticks(steps, [str(step) for step in steps])
        ax.minorticks_off()
        ax.set_xlabel("steps T")
        ax.set_ylabel("wall time / s")
        ax.set_ylim(top=3e5)
        ax.legend(loc="upper left", fontsize="small")
        style.save(figure, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program", nargs="?", help="dmft_solve")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--eta", type=float, default=0.5)
    parser.add_argument("--samples", type=int, default=1000, help="of JAX, per layer and iteration")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--damping", type=float, default=0.5)
    parser.add_argument("--responses", choices=("jacobians", "probes"), default="jacobians")
    parser.add_argument("--chunk", type=int, default=20, help="samples whose Jacobians are held at once")
    parser.add_argument("--seeds", type=int, default=1, help="of JAX: runs, for its error")
    parser.add_argument("--sweep", nargs="*", default=["256x4"], help="neurons x replicas of our sweep")
    parser.add_argument("--iterate", nargs="*", default=["1000x3"], help="of our kernel iteration")
    parser.add_argument("--reference", default="reference.h5", help="what errors are measured against; made where it does not exist")
    parser.add_argument("--figure", nargs=2, metavar=("TABLE", "SVG"), help="only draw wall times out of tables that were kept")
    a = parser.parse_args()
    if a.figure:
        return draw_times(*a.figure)
    x, y = problem()
    if not Path(a.reference).exists():
        ours(a.program, x, y, a, "sweep", "4096x8", a.reference, seed=1)
    reference, sem, reference_kernels = read(a.reference)
    print(f"T = {a.steps}, P = {P}, eta = {a.eta}; reference: loss {reference[0]:.4f} to {reference[-1]:.5f}, its error {rms(sem):.1e}")
    print("loss, every fifth step:", " ".join(f"{v:.4f}" for v in reference[::5]))

    def row(name, loss, kernels, seconds, note):
        off = " ".join(f"{name} {np.linalg.norm(kernels[name] - k) / np.linalg.norm(k):.1%}" for name, k in reference_kernels.items())
        print(f"| {a.steps} | {name} | {seconds:.2f} s | {rms(loss - reference):.1e} | {off} | {note}", flush=True)

    print("| T | solver | wall | error of the loss | kernels at T off by | |")
    for method, sizes in (("sweep", a.sweep), ("iterate", a.iterate)):
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                seconds = ours(a.program, x, y, a, method, size, f"{folder}/limit.h5")
                loss, sem, kernels = read(f"{folder}/limit.h5")
            row(f"{method} {size}", loss, kernels, seconds, f"its standard error {rms(sem):.1e}")
    for seed in range(a.seeds):
        k, fs, seconds = solve(x, y, a, seed)
        f = fs[a.iterations // 2 :].mean(0)
        note = f"{a.iterations} iterations of {np.median(seconds):.2f} s; last f alone {rms(loss_of(fs[-1], y) - reference):.1e}"
        row(f"JAX {a.responses}", loss_of(f, y), last_kernels(k, f[-1], y), sum(seconds), note)
        changes = [rms(loss_of(b, y) - loss_of(c, y)) for b, c in zip(fs[1:], fs[:-1])]
        print("  change of the loss by iteration:", " ".join(f"{change:.0e}" for change in changes))


if __name__ == "__main__":
    main()
