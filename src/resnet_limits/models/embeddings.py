"""Fixed embeddings A and read-outs B of Barboni, Peyre and Vialard (2022), Section 5.1."""

from __future__ import annotations

import torch
from torch import Tensor


def scaling_maps(alpha: float, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Return A = alpha (I_d, 0)^T and B = alpha (0, I_d'), q = d + d' (Section 5.1, Scaling).

    Outputs start at BA x = 0. Gradients grow like alpha^2; scale step sizes by alpha^(-2).

    Parameters
    ----------
    alpha
        Common factor.
    inputs, outputs
        Dimensions d and d'.

    Returns
    -------
    input_map, output_map
        A ``(q, d)`` and B ``(d', q)``, in float64.
    """
    identity = alpha * torch.eye(inputs + outputs, dtype=torch.float64)
    return identity[:, :inputs].clone(), identity[inputs:].clone()


def lifting_maps(states: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Return A_q = q^(-1/4) (I_d, ..., I_d, 0)^T and B_q = q^(1/4) (I_d', 0, ..., 0).

    This is the Lifting of Section 5.1. A has floor(q / d) copies of I_d. Outputs read the first
    coordinates, so they start at BA x, which is x itself where d' = d.

    Parameters
    ----------
    states
        Dimension q >= max(d, d') of the states.
    inputs, outputs
        Dimensions d and d'.

    Returns
    -------
    input_map, output_map
        A ``(q, d)`` and B ``(d', q)``, in float64.

    Raises
    ------
    ValueError
        If q is too small.
    """
    if states < max(inputs, outputs):
        raise ValueError(f"{states} states have no room for {inputs} inputs, {outputs} outputs")
    copies = states // inputs
    input_map = torch.zeros(states, inputs, dtype=torch.float64)
    input_map[: copies * inputs] = torch.eye(inputs, dtype=torch.float64).repeat(copies, 1)
    output_map = torch.eye(outputs, states, dtype=torch.float64)
    return states**-0.25 * input_map, states**0.25 * output_map
