"""Writes the seeds of the fuzz targets into corpus/: python3 tests/fuzz/make_corpus.py. Needs h5py."""
import gzip
import pathlib

import h5py
import numpy

here = pathlib.Path(__file__).parent
root = here.parent.parent


def seed(target, name, data):
    folder = here / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


# Configurations: those of the reference cases, and one that names every kind of value.
for path in sorted((root / "tests/data/limits").glob("*.toml")):
    seed("config", path.name, path.read_bytes())
seed("config", "kinds.toml", b"""[model]
regime = "III"
param = "mup"
routing = "topk"
aggregation = {K = -1.0, const = 2}
init_scale.router = 0.5
[optimizer]
name = "adamw"
lr = 1e-3
lr_scale = {router = 0.1}
[data]
source = "gaussian"
train = 8
seed = 18446744073709551615
[training]
steps = 2147483647
batch = 4
[network]
widths = [64, 128]
[output]
observables = ["rms_h", "load_max"]
kernels_at = [0, 5]
weights = true
""")

# Tables; the first byte chooses regime and optimizer.
for path in sorted((root / "parameterizations").glob("*.toml")):
    for choice in (0, 4) if path.stem in ("mssp", "ntp") else (3,):
        seed("parameterization", f"{path.stem}-{choice}", bytes([choice]) + path.read_bytes())

# IDX, plain and gzip; the first byte chooses the file.
labels = bytes([0, 0, 8, 1, 0, 0, 0, 2, 3, 9])
images = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(2 * 784)
for which, content in enumerate((images, labels)):
    seed("idx", f"plain-{which}", bytes([which]) + content)
    seed("idx", f"gzip-{which}", bytes([which]) + gzip.compress(content, mtime=0))

seed("cifar", "train", bytes([0, 9]) + bytes(3072))
seed("cifar", "test", bytes([5, 9]) + bytes(3072))

for name in ("grey", "halves", "narrow"):
    seed("tinyimagenet", name, bytes([0]) + (root / f"tests/data/images/{name}.JPEG").read_bytes())
seed("tinyimagenet", "wnids", b"\x01n01\nn02\r\n")
seed("tinyimagenet", "annotations", b"\x02a.JPEG\tn01\t0\t0\t1\t1\nb.JPEG\tn02\r\n")

# HDF5: contiguous with attributes, chunked and compressed, old and new format of groups.
for name, version, options in (("plain", "earliest", {}), ("deflate", "latest", {"chunks": (2, 3), "compression": 9})):
    path = here / "corpus" / f"{name}.h5"
    with h5py.File(path, "w", libver=version) as file:
        for part in ("x", "x_test"):
            file.create_dataset(part, data=numpy.arange(12.0).reshape(4, 3), **options)
        for part in ("y", "y_test"):
            file[part] = numpy.ones((4, 1), dtype="f4")
        file.attrs["config"] = "text"
        file.attrs["format_version"] = 1
    seed("hdf5", name, path.read_bytes())
    path.unlink()

# Text that is no TOML: toml++ has left the string in which a scanner of quotes still is.
seed("config", "lost_string", b"-e=++t[\"\\+zneuronsa\xef\xbb\xb7iz")
seed("parameterization", "lost_string", b";e =2\"k0\0\0.'.=\xcc\x90\x04ula, n=\xd5\x90\x04nk")
