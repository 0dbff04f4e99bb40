"""RKHS neural ODEs of Barboni, Peyre and Vialard (NeurIPS 2022), of finite and infinite width.

The model (Definition 1), with D Euler steps: z_0 = A x, z_(k+1) = z_k + (1/D) v_k(z_k), output
F(x) = B z_D. A and B are fixed, the residuals v_k in an RKHS V are trained from 0 by gradient
descent on L = 1/(2N) sum_i ||F(x_i) - y_i||^2 (Eq. 7), in the metric of L2([0, 1], V):
``||v||^2 = (1/D) sum_k ||v_k||_V^2``. In this metric the gradient at step k is (Property 1)

    grad_k = sum_i K(., z_k^i) p_(k+1)^i,    p_k = p_(k+1) + (1/D) Dv_k(z_k)^T p_(k+1),

with p_D = B^T (B z_D - y) / N. It is D times the plain gradient with respect to v_k; the factor
1/D of the Euler step cancels, and results have a limit as D grows. (With the sign that Eq. 11 gives
to p_1, Property 1 is the negative gradient; here p is the gradient of L with respect to the state.)

Two spaces V: `FeatureResNet` has r random Fourier features (Eq. 20), v_k = W_k phi; `KernelResNet`
has the kernel itself (r = infinity), v_k a kernel expansion on the points visited so far. Both
hold a batch of independent members and leave gradients in ``weights.grad``, so that
``torch.optim.SGD([model.weights], lr=eta)`` is the paper's gradient descent with step eta.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from resnet_limits.models.kernels import Kernel, gram, pairwise_distances


class RKHSResNet(ABC):
    """What both widths share: states, adjoints and loss of a batch of members.

    Samples are the last axis inside, so that every operation is a long vector operation or a
    batched matrix product.

    Parameters
    ----------
    inputs, targets
        x ``(members or 1, N, d)`` and y ``(members or 1, N, d')``.
    input_map, output_map
        A ``(members or 1, q, d)`` and B ``(members or 1, d', q)``; the leading axis may be left
        out.
    members
        Size of the batch.
    depth
        Number of Euler steps D.
    dtype
        Type of all computations.

    Attributes
    ----------
    weights, gradient
        What is trained, and the gradient of the last pass; `loss_and_grad` makes it
        ``weights.grad``. Their leading axis is the members'.
    """

    weights: Tensor
    gradient: Tensor

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        input_map: Tensor,
        output_map: Tensor,
        members: int,
        depth: int,
        dtype: torch.dtype,
    ) -> None:
        self.depth = depth
        start = (input_map.to(torch.float64) @ inputs.to(torch.float64).mT).to(dtype)
        self._output_map = output_map.to(dtype).expand(members, *output_map.shape[-2:])
        self._targets = targets.to(dtype).mT.expand(members, -1, -1)
        shape = (depth + 1, members, *start.shape[-2:])
        self._states, self._adjoints = start.new_zeros(shape), start.new_zeros(shape)
        self._states[0] = start

    @property
    def states(self) -> Tensor:
        """Visited points z_0 .. z_D of the last pass, ``(members, D + 1, N, q)``."""
        return self._states.permute(1, 0, 3, 2)

    @property
    def adjoints(self) -> Tensor:
        """Adjoints p_0 .. p_D, gradients with respect to `states`, ``(members, D + 1, N, q)``."""
        return self._adjoints.permute(1, 0, 3, 2)

    @property
    def outputs(self) -> Tensor:
        """Outputs B z_D of the last pass, ``(members, N, d')``."""
        return torch.bmm(self._output_map, self._states[-1]).mT

    def loss_and_grad(self) -> Tensor:
        """Return the losses (Eq. 7), shape ``(members,)``; write L2 gradients to ``weights.grad``.

        A member whose training diverged has a non-finite loss and disturbs no other.
        """
        losses = self.evaluate()
        # Here and not once: optimizers may set gradients to None.
        self.weights.grad = self.gradient
        return losses

    def evaluate(self) -> Tensor:
        """Return the losses without preparing a step; states, adjoints and norms are up to date.

        For measuring between steps, as often as one likes.
        """
        for step in range(self.depth):
            self._forward(step)
        losses = self._read_out()
        for step in reversed(range(self.depth)):
            self._backward(step)
        return losses

    def _read_out(self) -> Tensor:
        """Return the losses and set the last adjoint."""
        samples = self._targets.shape[-1]
        residual = torch.bmm(self._output_map, self._states[-1]).sub_(self._targets)
        torch.bmm(self._output_map.mT, residual / samples, out=self._adjoints[-1])
        return residual.square_().sum(dim=(1, 2)) / (2 * samples)

    @abstractmethod
    def _forward(self, step: int) -> None:
        """Compute the next state from the state at an Euler step."""

    @abstractmethod
    def _backward(self, step: int) -> None:
        """Compute the adjoint at an Euler step from the next one, and the step's gradient."""

    @abstractmethod
    def norm(self) -> Tensor:
        """Return ||v||, the L2([0, 1], V) norm of the residuals, shape ``(members,)``."""

    @abstractmethod
    def gradient_norm(self) -> Tensor:
        """Return ||grad L(v)|| of the last pass in the same norm, shape ``(members,)``."""

    @abstractmethod
    def visited_grams(self) -> Tensor:
        """Return V's kernel matrices on z_0 .. z_(D-1) of the last pass.

        Returns
        -------
        Tensor
            ``(members, D, N, N)``, in float64; of features, as accurate as their type.
        """


class FeatureResNet(RKHSResNet):
    """Members of finite width, v_k(z) = W_k phi(z), with their own random Fourier features.

    phi(z) = r^(-1/2) (cos<z, w_j>, sin<z, w_j>)_j is Eq. 20 in real form. Cosines and sines are
    half of the cost; each is computed once a pass, and kept from the forward to the backward sweep
    in a buffer of ``2 r N D members`` numbers. In float32 an angle <z, w> is off by 1e-7 of
    its size, so states far from 0 (scaling with alpha > 10) need float64.

    Parameters
    ----------
    inputs, targets, input_map, output_map, depth, dtype
        As in `RKHSResNet`.
    frequencies
        w_j, ``(members, r, q)``.

    Attributes
    ----------
    weights
        W, ``(members, D, q, 2 r)``, zero at first; coefficients of cosines, then of sines. Stored
        with depth as the slowest axis, so that the weights of a step are one block.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        input_map: Tensor,
        output_map: Tensor,
        frequencies: Tensor,
        depth: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        members, self.width, q = frequencies.shape
        super().__init__(inputs, targets, input_map, output_map, members, depth, dtype)
        self._frequencies = frequencies.to(dtype).contiguous()
        samples = self._states.shape[-1]
        self._features = self._states.new_empty(depth, members, 2 * self.width, samples)
        self._product = torch.empty_like(self._features[0])
        self._weights = self._states.new_zeros(depth, members, q, 2 * self.width)
        self._gradient = torch.zeros_like(self._weights)
        self.weights = self._weights.transpose(0, 1)
        self.gradient = self._gradient.transpose(0, 1)
        # The first state never moves, so neither do its features.
        self._compute_features(0)

    def _halves(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features[:, : self.width], features[:, self.width :]

    def _compute_features(self, step: int) -> None:
        cosines, sines = self._halves(self._features[step])
        torch.bmm(self._frequencies, self._states[step], out=sines)
        torch.cos(sines, out=cosines)
        sines.sin_()

    def _forward(self, step: int) -> None:
        if step > 0:
            self._compute_features(step)
        torch.baddbmm(
            self._states[step],
            self._weights[step],
            self._features[step],
            alpha=1 / (self.depth * math.sqrt(self.width)),
            out=self._states[step + 1],
        )

    def _backward(self, step: int) -> None:
        scale = 1 / math.sqrt(self.width)
        adjoint, features = self._adjoints[step + 1], self._features[step]
        self._gradient[step].baddbmm_(adjoint, features.mT, beta=0, alpha=scale)
        # The derivative of (cos, sin) is (-sin, cos).
        cosines, sines = self._halves(features)
        by_cosine, by_sine = self._halves(self._product)
        torch.bmm(self._weights[step].mT, adjoint, out=self._product)
        by_sine.mul_(cosines).addcmul_(by_cosine, sines, value=-1)
        torch.baddbmm(
            adjoint,
            self._frequencies.mT,
            by_sine,
            alpha=scale / self.depth,
            out=self._adjoints[step],
        )

    def norm(self) -> Tensor:
        """Return ||v||, shape ``(members,)``, in float64."""
        return l2_norm(self.weights)

    def gradient_norm(self) -> Tensor:
        """Return ||grad L(v)|| of the last pass, shape ``(members,)``, in float64."""
        return l2_norm(self.gradient)

    def visited_grams(self) -> Tensor:
        """Return the features' kernel matrices on the visited points, from the last pass."""
        products = self._features.mT @ self._features
        return products.transpose(0, 1).to(torch.float64) / self.width


class KernelResNet(RKHSResNet):
    """Members of infinite width: v_k = sum_c K(., c) a_c over centres c, the points visited so far.

    Exact (``tolerance`` None): every pass adds the N visited points of each Euler step as centres,
    so a training of T steps costs T^2 N^2 D / 2 kernel values.

    Compressed: each (Euler step, sample) has its own few centres, taken from the points it visited.
    A new point z becomes a centre if the distance of K(., z) from the span of the centres, its
    power function, exceeds the tolerance; otherwise K(., z) is replaced by its projection on the
    span. Gradients are then wrong by a fraction of the tolerance's order, measured by
    `projection_error`, and the cost of a step stops growing once a trajectory is covered.

    Parameters
    ----------
    inputs, targets, input_map, output_map, depth, dtype
        As in `RKHSResNet`; there are as many members as inputs.
    kernel
        The kernel.
    capacity
        Largest number of centres for each (Euler step, sample): exact training needs as many as
        there are passes. When full, compressed training projects whatever the error.
    tolerance
        None for exact training; otherwise below 1. In float64, not below about 1e-6.

    Attributes
    ----------
    weights
        Coefficients a, ``(members, D, capacity, N, q)``. ``weights.grad`` is the gradient's
        expansion, for which `loss_and_grad` makes room: follow every call by an optimizer step.
    centres
        Of the same shape.
    counts, factors
        Numbers of centres ``(members, D, N)``, and inverse Cholesky factors of their Gram matrices
        if compressed; with weights and centres, all that a resumed training needs.
    projection_error
        Norm of the last gradient's error, at most, shape ``(members,)``; 0 if exact. The sum of
        step size times this over all steps bounds, in the norm of v, what was added to the
        descent; whether later steps amplify it is not bounded, but measured on small problems.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        input_map: Tensor,
        output_map: Tensor,
        kernel: Kernel,
        depth: int,
        capacity: int,
        tolerance: float | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        members = inputs.shape[0]
        super().__init__(inputs, targets, input_map, output_map, members, depth, dtype)
        self.kernel, self.capacity, self.tolerance = kernel, capacity, tolerance
        q, samples = self._states.shape[-2:]
        self.weights = self._states.new_zeros(members, depth, capacity, samples, q)
        self.gradient = torch.zeros_like(self.weights)
        self.centres = torch.zeros_like(self.weights)
        self.projection_error = self._states.new_zeros(members)
        self.counts = self._states.new_zeros(members, depth, samples, dtype=torch.int64)
        sides = (capacity, capacity) if tolerance is not None else (0, 0)
        self.factors = self._states.new_zeros(members, depth, samples, *sides)
        self._distances: list[Tensor] = []

    @property
    def centres_in_use(self) -> int:
        """Largest number of centres of an (Euler step, sample)."""
        return int(self.counts.max())

    def loss_and_grad(self) -> Tensor:
        """Return the losses, and write the gradient's expansion to ``weights.grad``.

        Raises
        ------
        RuntimeError
            If exact training has used up its capacity.
        """
        losses = super().loss_and_grad()
        self.gradient.zero_()
        if self.tolerance is None:
            self._expand()
        else:
            self._project(self.tolerance)
        return losses

    def evaluate(self) -> Tensor:
        """Return the losses without adding centres; states, adjoints and norms are up to date."""
        self._distances.clear()
        self._in_use = self.centres_in_use
        return super().evaluate()

    def _expansion(self, step: int) -> tuple[Tensor, Tensor]:
        """Return an Euler step's centres and weights, both ``(members, centres, q)``."""
        used = slice(self._in_use)
        return self.centres[:, step, used].flatten(1, 2), self.weights[:, step, used].flatten(1, 2)

    def _forward(self, step: int) -> None:
        state = self._states[step]
        centres, weights = self._expansion(step)
        self._distances.append(pairwise_distances(state.mT, centres))
        residual = torch.bmm(self.kernel(self._distances[step]), weights)
        torch.add(state, residual.mT, alpha=1 / self.depth, out=self._states[step + 1])

    def _backward(self, step: int) -> None:
        state, adjoint = self._states[step], self._adjoints[step + 1]
        centres, weights = self._expansion(step)
        # With s = ||z - c||, the gradient of <p, v(z)> is sum_c <p, a_c> k'(s)/s (z - c).
        pull = torch.bmm(weights, adjoint).mT * self.kernel.slope(self._distances[step])
        change = pull.sum(-1)[:, None] * state - torch.bmm(pull, centres).mT
        torch.add(adjoint, change, alpha=1 / self.depth, out=self._adjoints[step])

    def _visited(self) -> tuple[Tensor, Tensor]:
        """Return the gradient's points and coefficients, both ``(members, D, N, q)``."""
        return self.states[:, :-1], self.adjoints[:, 1:]

    def _expand(self) -> None:
        if self._in_use == self.capacity:
            raise RuntimeError(f"exact training has room for {self.capacity} passes only")
        points, coefficients = self._visited()
        self.centres[:, :, self._in_use] = points
        self.gradient[:, :, self._in_use] = coefficients
        self.counts += 1

    def _project(self, tolerance: float) -> None:
        slots = slice(min(self._in_use + 1, self.capacity))
        points, coefficients = self._visited()
        own = self.centres[:, :, slots].transpose(2, 3)
        index = torch.arange(own.shape[-2], device=own.device)
        values = self.kernel(torch.linalg.vector_norm(points[..., None, :] - own, dim=-1))
        values = values * (index < self.counts[..., None])
        factor = self.factors[..., slots, slots]
        whitened = (factor @ values[..., None])[..., 0]
        onto = (factor.mT @ whitened[..., None])[..., 0]
        power = (1 - whitened.square().sum(-1)).clamp_min(0).sqrt()

        fresh = (power > tolerance) & (self.counts < self.capacity)
        # Indices and not the mask itself, which would make the host wait for a GPU at every use.
        member, step, sample = new = fresh.nonzero(as_tuple=True)
        slot = self.counts[new]
        # Bordering: the new row of the inverse factor is (-projection, 1) / power.
        self.factors[..., slots][*new, slot] = -onto[new] / power[new][:, None]
        self.factors[*new, slot, slot] = 1 / power[new]
        self.centres[member, step, slot, sample] = points[new]
        self.counts += fresh

        onto[new] = (index == slot[:, None]).to(onto)
        self.gradient[:, :, slots] = onto.transpose(2, 3)[..., None] * coefficients[:, :, None]
        missed = (coefficients.norm(dim=-1) * power * ~fresh).sum(-1)
        self.projection_error = missed.square().mean(1).sqrt()

    def norm(self) -> Tensor:
        """Return ||v||, shape ``(members,)``."""
        used = slice(self.centres_in_use)
        centres, weights = self.centres[:, :, used], self.weights[:, :, used]
        return self._expansion_norm(centres.flatten(2, 3), weights.flatten(2, 3))

    def gradient_norm(self) -> Tensor:
        """Return ||grad L(v)|| of the last pass, shape ``(members,)``."""
        return self._expansion_norm(*self._visited())

    def visited_grams(self) -> Tensor:
        """Return the kernel's matrices on the points visited in the last pass."""
        return gram(self.kernel, self.states[:, :-1])

    def _expansion_norm(self, centres: Tensor, weights: Tensor) -> Tensor:
        squared = [
            # One Euler step at a time: the matrices of all have no room at many centres.
            (own * (gram(self.kernel, centres[:, step]).to(own) @ own)).sum((-2, -1))
            for step, own in enumerate(weights.unbind(1))
        ]
        return torch.stack(squared).mean(0).clamp_min(0).sqrt()


def l2_norm(weights: Tensor) -> Tensor:
    """Return the L2([0, 1]) norm of weights constant on D intervals.

    Parameters
    ----------
    weights
        ``(members, D, q, features)``, with the Frobenius metric on each step (Eq. 4).

    Returns
    -------
    Tensor
        ``(members,)``, in float64.
    """
    total: Tensor = torch.linalg.vector_norm(weights, dim=(1, 2, 3), dtype=torch.float64)
    return total / math.sqrt(weights.shape[1])


def pl_quotient(gradient_norm: Tensor, losses: Tensor) -> Tensor:
    """Return ||grad L||^2 / (2 L), which Property 2 holds between m(||v||) and M(||v||)."""
    return gradient_norm.square() / (2 * losses)
