"""GPUs on which it is seen when the host waits: the real one, and one that is pretended."""

import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from unittest import mock

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PACKAGE = str(Path("src", "resnet_limits"))

aten = torch.ops.aten
FROM_THE_HOST = (torch.tensor, torch.as_tensor, torch.asarray)
# What they return, or its shape, the host must know.
WAITING = {
    *(aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select),
    *(aten._unique2, aten.bincount, aten.repeat_interleave),
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
TAKE_SCALARS = {*INDEXING, aten.fill_}  # of the CPU, besides elementwise operations


@contextmanager
def real_gpu(note):
    """Call ``note`` with the line of the package that makes the host wait for the GPU."""

    def show(message, *_):
        if "synchronizing CUDA operation" in str(message):
            note(_line())

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def pretended_gpu(note):
    """Let tensors of the CPU claim to be on ``cuda`` when they are sent or made there.

    The CPU computes all operations, so results are true. Claims are kept with the storage, which
    views share.

    Parameters
    ----------
    note
        Is called with the line of the package that would make the host wait for a GPU.

    Raises
    ------
    RuntimeError
        In the body, where an operation gets tensors of both devices, or a generator of the other.
    TypeError
        In the body, where numpy gets a tensor of the GPU.
    """
    autocast, enabled, dtype = (
        torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype,
    )  # fmt: skip
    with (
        mock.patch("torch.autocast", lambda _, *args, **options: autocast("cpu", *args, **options)),
        mock.patch("torch.is_autocast_enabled", lambda *_: enabled("cpu")),
        mock.patch("torch.get_autocast_dtype", lambda _: dtype("cpu")),
        mock.patch("torch.cuda.is_bf16_supported", lambda: True),
        mock.patch("torch.cuda.synchronize", lambda: None),
        _Operations(note) as operations,
        _Calls(note, operations),
    ):
        yield


def is_on_gpu(tensor):
    """Return whether a tensor claims to be on the GPU."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return getattr(tensor.untyped_storage(), "on_gpu", False)


def _claim(tensor, device):
    tensor.untyped_storage().on_gpu = device.type == GPU.type
    return tensor


def _line():
    frames = [f for f in traceback.extract_stack() if PACKAGE in f.filename]
    return f"{Path(frames[-1].filename).name}: {frames[-1].line}" if frames else "outside"


class _Calls(TorchFunctionMode):
    """Calls from Python, which send tensors to devices and ask where they are.

    Those inside torch's own functions of Python are not seen, such as those of an
    `torch.autograd.Function` when `torch.autograd.grad` calls it.
    """

    def __init__(self, note, operations):
        super().__init__()
        self.note, self.operations = note, operations
        self.special = {
            Tensor.device.__get__: lambda tensor: GPU if is_on_gpu(tensor) else CPU,
            Tensor.is_cuda.__get__: is_on_gpu,
            Tensor.is_cpu.__get__: lambda tensor: not is_on_gpu(tensor),
            Tensor.to: self._to,
            Tensor.cpu: lambda tensor: self._move(tensor, CPU),
            Tensor.cuda: lambda tensor: self._move(tensor, GPU),
            Tensor.tolist: lambda tensor: self._move(tensor, CPU).tolist(),
            Tensor.numpy: _numpy,
            Tensor.__array__: _numpy,
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.special:
            return self.special[func](*args, **kwargs)
        if kwargs.get("device") is None:
            # What torch makes on its own in a call is where the tensors are that it was given.
            given = () if isinstance(func, FunctionType) else (args, kwargs)
            with self.operations.making(any(_on_gpu(given))):
                return func(*args, **kwargs)
        device = torch.device(kwargs["device"])
        _check_generators(kwargs.values(), device)
        made = func(*args, **kwargs | {"device": CPU})
        return (self._move if func in FROM_THE_HOST else _claim)(made, device)

    def _to(self, tensor, *args, **kwargs):
        if args and isinstance(args[0], Tensor):
            device = GPU if is_on_gpu(args[0]) else CPU
            return self._move(tensor, device, dtype=args[0].dtype)
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        return self._move(tensor, device, non_blocking, dtype=dtype, memory_format=layout)

    def _move(self, tensor, device, non_blocking=False, **options):
        options = {"dtype": tensor.dtype} | {k: v for k, v in options.items() if v is not None}
        if device is None or (device.type == GPU.type) == is_on_gpu(tensor):
            return tensor.to(**options)
        if not non_blocking:
            self.note(_line())
        return _claim(tensor.to(**options, copy=True), device)


def _numpy(tensor, *args, **kwargs):
    if is_on_gpu(tensor):
        raise TypeError(f"can't convert a {GPU} tensor to numpy: {_line()}")
    return tensor.__array__(*args) if args else tensor.numpy(**kwargs)


class _Operations(TorchDispatchMode):
    """All operations, those of backward passes included: what they mix, and wait for."""

    def __init__(self, note):
        super().__init__()
        self.note = note
        self.makes_on_gpu = False

    @contextmanager
    def making(self, on_gpu):
        before, self.makes_on_gpu = self.makes_on_gpu, on_gpu
        try:
            yield
        finally:
            self.makes_on_gpu = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        on_gpu = _on_gpu((args, kwargs))
        if any(on_gpu):
            self._check(func, args, kwargs)
        made = func(*args, **kwargs)
        if any(on_gpu) or (self.makes_on_gpu and not on_gpu):
            for tensor in _tensors(made) if func.overloadpacket is not aten.copy_ else ():
                _claim(tensor, GPU)
        return made

    def _check(self, func, args, kwargs):
        kind, (first, *others) = func.overloadpacket, args
        _check_generators([*args, *kwargs.values()], GPU)
        if kind is aten.copy_:
            if not all(_on_gpu(args)) and others[1:] != [True]:
                self.note(_line())
            return
        # A GPU must say how many elements a mask has; indices of the CPU are copied.
        indices = list(_tensors(others.pop(0))) if kind in INDEXING else []
        if kind in WAITING or any(i.dtype == torch.bool or not is_on_gpu(i) for i in indices):
            self.note(_line())
        takes_scalars = torch.Tag.pointwise in func.tags or kind in TAKE_SCALARS
        for tensor in _tensors((first, others, kwargs)):
            if is_on_gpu(tensor):
                continue
            is_scalar = takes_scalars and tensor.dim() == 0
            if not is_scalar or _is_written(func, tensor, args, kwargs):
                raise RuntimeError(f"{func} got tensors on {GPU} and {CPU}: {_line()}")


def _is_written(func, tensor, args, kwargs):
    parameters = func._schema.arguments
    given = {p.name: value for p, value in zip(parameters, args, strict=False)} | kwargs
    written = (p.name for p in parameters if p.alias_info is not None and p.alias_info.is_write)
    return any(given.get(name) is tensor for name in written)


def _tensors(given):
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, list | tuple | dict):
        for value in given.values() if isinstance(given, dict) else given:
            yield from _tensors(value)


def _on_gpu(given):
    return [is_on_gpu(tensor) for tensor in _tensors(given)]


def _check_generators(given, device):
    for value in given:
        if isinstance(value, torch.Generator) and value.device.type != device.type:
            raise RuntimeError(f"a generator on {value.device} for {device}: {_line()}")
