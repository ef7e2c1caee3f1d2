"""The projector: the network from representations to embeddings (section 2.2)."""

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

from torch import nn


def build_projector(
    in_dim: int,
    dims: Sequence[int],
    *,
    use_bn: bool = True,
    bias: bool = False,
    output_bias: bool | None = None,
) -> nn.Sequential:
    """Linear layers of widths `dims`, each but the last followed by batch normalisation and ReLU.

    Maps representations (N, in_dim) to embeddings (N, dims[-1]); the paper's is
    `build_projector(2048, [8192, 8192, 8192])`. PyTorch's default initialisation. The layers are
    numbered as in the authors' code, so the `projector.*` entries of their checkpoints fit.

    Args:
        in_dim: dimensions of the representation.
        dims: output width of each linear layer, one or more.
        use_bn: batch normalisation in the hidden layers; False is Table 5's "no BN in MLP".
        bias: biases in the linear layers. The authors have none, with or without normalisation.
        output_bias: a bias in the last of them, which no normalisation follows; None: as `bias`.

    Raises:
        ValueError: no layer, a width that is not a positive integer, or a switch that is none.
    """
    if isinstance(dims, str) or not isinstance(dims, Sequence) or not dims:
        raise ValueError(f"dims={dims!r} must list at least one width, such as [8192, 8192, 8192]")
    names = ["in_dim", *(f"dims[{i}]" for i in range(len(dims)))]
    for name, width in zip(names, [in_dim, *dims]):
        if not isinstance(width, Integral) or width < 1:
            raise ValueError(f"{name}={width!r} must be a positive integer")

    for name, switch in (("use_bn", use_bn), ("bias", bias), ("output_bias", output_bias)):
        if not isinstance(switch, bool | None):
            raise ValueError(f"{name}={switch!r} must be true or false")

    *hidden, last = pairwise([in_dim, *dims])
    layers: list[nn.Module] = []
    for fan_in, fan_out in hidden:
        layers.append(nn.Linear(fan_in, fan_out, bias=bias))
        if use_bn:
            layers.append(nn.BatchNorm1d(fan_out))
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(*last, bias=bias if output_bias is None else output_bias))
    return nn.Sequential(*layers)
