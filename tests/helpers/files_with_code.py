"""Files of the kinds a run is given that run code when they are loaded carelessly."""

import os
import pickle
from pathlib import Path

import numpy as np
import torch


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def malicious(path: Path, ran: Path) -> Path:
    """A file of the kind its name says that makes the folder `ran` when its code runs."""
    if path.suffix in (".torch", ".pth"):
        state = {"base_model": {"model": {"trunk": {"_feature_blocks.conv1.weight": Code(ran)}}}}
        torch.save({"classy_state_dict": state, "iteration": 3, "type": "consolidated"}, path)
    elif path.suffix == ".npy":
        np.save(path, np.array([Code(ran)], dtype=object), allow_pickle=True)
    elif path.suffix == ".npz":
        np.savez(path, features=np.array([Code(ran)], dtype=object))
    elif path.suffix == ".yaml":
        path.write_text(f"config:\n  x: !!python/object/apply:os.mkdir ['{ran}']\n")
    else:
        path.write_bytes(pickle.dumps(Code(ran)))
    return path
