"""Writes foreign.h5: what files of other programs may hold, good and bad. Read by tests/input/hdf5_files.cpp."""
import os

import h5py
import numpy as np

os.chdir(os.path.dirname(os.path.abspath(__file__)))
with h5py.File("foreign.h5", "w") as f:
    f["good/big_endian_int16"] = np.arange(-3, 3, dtype=">i2").reshape(2, 3)
    f["good/scalar"] = np.float32(2.5)
    f["good/empty"] = np.zeros((0, 4))
    f.create_dataset("good/compressed", data=np.full((64, 64), 7.0), chunks=(16, 16), compression="gzip", shuffle=True)
    f["good/linked"] = h5py.SoftLink("/good/scalar")
    f.attrs["text"] = "variable λ"
    f.attrs["fixed"] = np.bytes_("fixed")
    f.attrs["number"] = np.int32(-4)
    f.attrs["list"] = np.arange(3)
    f["bad/strings"] = np.array(["a", "b"], dtype=h5py.string_dtype())
    f["bad/compound"] = np.zeros(2, dtype=[("a", "f8"), ("b", "i4")])
    f["bad/complex"] = np.zeros(2, dtype=complex)
    f["bad/null"] = h5py.Empty("f8")
    f.create_dataset("bad/never_written", shape=(1 << 20, 1 << 9), dtype="f8")  # 4 GiB claimed by a few bytes
    f.create_dataset("bad/huge", shape=(1 << 20, 1 << 20), dtype="f8", chunks=(16, 16))
    f.create_dataset("bad/elsewhere", shape=(4,), dtype="f8", external=[("/etc/hostname", 0, 32)])
    layout = h5py.VirtualLayout(shape=(2, 3), dtype=">i2")
    layout[:] = h5py.VirtualSource("foreign.h5", "good/big_endian_int16", shape=(2, 3))
    f.create_virtual_dataset("bad/virtual", layout)
    f["bad/other_file"] = h5py.ExternalLink("/etc/hostname", "/x")
    f["bad/dangling"] = h5py.SoftLink("/nowhere")
    f["bad/circle"] = h5py.SoftLink("/bad/circle")
