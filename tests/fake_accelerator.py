"""A fake accelerator for CPU-only torch: real values, a GPU's device rules, and counts of kernels, syncs and copies.

    install()                     once, before the process's first backward pass: autograd counts devices then
    with watching() as counts:    the rules hold, and counts.kernels, counts.syncs, counts.copies are by place in cft/
        model.to(DEVICE) ...

A device tensor is a wrapper around a CPU tensor. As with CUDA, an operation on a CPU tensor and a device tensor is an error,
except for scalars and indices; an operation whose value the host needs (`.tolist()`, a mask as index) is a sync. The backend
for Python wrappers is private to torch (`_setup_privateuseone_for_python_backend`): if torch removes it, this module fails,
not `cft`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fakegpu"
CFT = str(Path(__file__).resolve().parent.parent / "cft") + "/"
aten = torch.ops.aten
# Their results depend on values, so the host waits for the device.
SYNCING = frozenset(
    {
        aten._local_scalar_dense.default,
        aten.nonzero.default,
        aten.masked_select.default,
        aten.bincount.default,
        aten.unique_dim.default,
        aten._unique2.default,
        aten.equal.default,
        aten.is_nonzero.default,
    }
)
TAKES_CPU_INDICES = frozenset(
    {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
)


class DeviceMismatch(RuntimeError):
    """Tensors on two devices in one operation, which CUDA refuses."""


@dataclass(slots=True)
class Counts:
    """Counts by "file:line" in cft/ and operation: kernels launched, syncs with the device, copies to it."""

    kernels: Counter[str] = field(default_factory=Counter)
    syncs: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)

    def totals(self) -> dict[str, int]:
        return {name: sum(getattr(self, name).values()) for name in ("kernels", "syncs", "copies")}


COUNTS = Counts()


class _Backend:
    """The functions that torch requires of a backend module."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None: ...

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None: ...


def install() -> torch.device:
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    return torch.device(NAME, 0)


@contextmanager
def watching() -> Iterator[Counts]:
    for counter in (COUNTS.kernels, COUNTS.syncs, COUNTS.copies):
        counter.clear()
    with _Dispatched(), _Called():
        yield COUNTS


class OnDevice(torch.Tensor):
    """A device tensor. inner: its values, on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Dispatched(TorchDispatchMode):
    """Handles operations without device tensors as arguments, such as torch.zeros(device=...)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Called(TorchFunctionMode):
    """Handles functions that do not reach the dispatcher, or that have only a CPU kernel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention and isinstance(args[0], OnDevice):
            return _attention(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor):
            return _made(func, args, kwargs)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[1], list):
            # Inside torch, a list of indices becomes a device tensor without passing the dispatcher.
            args = (args[0], _made(torch.tensor, (args[1],), {"device": args[0].device}), *args[2:])
        if func is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            COUNTS.syncs[f"{site()} tolist"] += 1
            return args[0].inner.tolist()
        if func is torch.Tensor.numpy and isinstance(args[0], OnDevice):
            raise DeviceMismatch(f"numpy() of a tensor on {NAME} at {site()}")
        return func(*args, **kwargs)


def _made(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """A tensor from Python values: made on the host and copied, which inside torch bypasses the dispatcher."""
    here = isinstance(args[0], OnDevice)
    if not _ours(kwargs.get("device", args[0].device if here else None)):
        return func(*args, **kwargs)
    if any(isinstance(x, OnDevice) for x in args[1:]) or (here and func is torch.as_tensor):
        return func(*args, **kwargs)
    options = {name: value for name, value in kwargs.items() if name != "device"}
    COUNTS.copies[f"{site()} from values"] += 1
    if func is torch.Tensor.new_tensor:
        options.setdefault("dtype", args[0].dtype)
        return OnDevice(torch.tensor(*args[1:], **options))
    return OnDevice(torch.tensor(*args, **options))


def site() -> str:
    """The innermost stack frame in cft/, as "file:line"."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if (name := frame.f_code.co_filename).startswith(CFT):
            return f"cft/{name.removeprefix(CFT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside cft"


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """SDPA as separate operations; on a GPU it is one kernel."""
    kernels = COUNTS.kernels.copy()
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril().logical_not()
        scores = scores.masked_fill(later, float("-inf"))
    elif attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    out = scores.softmax(-1) @ v
    COUNTS.kernels.clear()
    COUNTS.kernels.update(kernels + Counter({f"{site()} attention": 1}))
    return out


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if func.overloadpacket is aten.to:
        return _moved(func, args, kwargs)
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    here = [x for x in tensors if isinstance(x, OnDevice)]
    device = kwargs.get("device")
    if func is aten._to_copy.default:
        return _copied(func, args[0], kwargs)
    if device is not None and (_ours(device) or here):
        out = func(*tree_map(_inner, args), **{**tree_map(_inner, dict(kwargs)), "device": torch.device("cpu")})
        _launched(func)
        return tree_map(_wrapped, out) if _ours(device) else out
    if not here:
        return func(*args, **kwargs)
    _require_one_device(func, args, [x for x in tensors if not isinstance(x, OnDevice) and x.dim() > 0])
    _count(func, args)
    out = func(*tree_map(_inner, args), **tree_map(_inner, dict(kwargs)))
    if not isinstance(out, torch.Tensor | tuple | list):
        return out
    return return_and_correct_aliasing(func, args, kwargs, tree_map(_wrapped, out))


def _require_one_device(func: Any, args: tuple[Any, ...], others: list[torch.Tensor]) -> None:
    if not others or func is aten.copy_.default:
        return
    if func not in TAKES_CPU_INDICES:
        shapes = ", ".join(str(tuple(x.shape)) for x in others)
        raise DeviceMismatch(f"{func.overloadpacket.__name__}: {shapes} on cpu beside {NAME} at {site()}")
    COUNTS.copies[f"{site()} index"] += 1
    if not isinstance(args[0], OnDevice):
        raise DeviceMismatch(f"{func.overloadpacket.__name__}: a tensor on cpu with an index on {NAME} at {site()}")


def _count(func: Any, args: tuple[Any, ...]) -> None:
    name = func.overloadpacket.__name__
    if func is aten.copy_.default:
        if isinstance(args[0], OnDevice) and not isinstance(args[1], OnDevice) and args[1].dim():
            COUNTS.copies[f"{site()} copy"] += 1
        if not isinstance(args[0], OnDevice):
            COUNTS.syncs[f"{site()} copy"] += 1
    by_mask = func is aten.index.Tensor and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    if func in SYNCING or by_mask:
        COUNTS.syncs[f"{site()} {name}"] += 1
    if not _is_view(func):
        _launched(func)


def _launched(func: Any) -> None:
    COUNTS.kernels[f"{site()} {func.overloadpacket.__name__}"] += 1


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _moved(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    source = args[0]
    asked = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, torch.device)]
    asked += [x.device for x in args[1:] if isinstance(x, torch.Tensor)]
    target = asked[0] if asked else source.device
    out = func(*(_on_cpu(_inner(a)) for a in args), **{k: _on_cpu(_inner(v)) for k, v in kwargs.items()})
    return _arrived(source, out, target)


def _copied(func: Callable[..., Any], source: torch.Tensor, kwargs: Mapping[str, Any]) -> Any:
    target = torch.device(kwargs.get("device") or source.device)
    out = func(_inner(source), **{k: v for k, v in kwargs.items() if k != "device"})
    return _arrived(source, out, target)


def _arrived(source: torch.Tensor, out: torch.Tensor, target: torch.device) -> torch.Tensor:
    here, there = isinstance(source, OnDevice), target.type == NAME
    if here and not there:
        COUNTS.syncs[f"{site()} to the host"] += 1
        return out
    if not here and there:
        COUNTS.copies[f"{site()} to the device"] += 1
        return OnDevice(out)
    if not here:
        return out
    assert isinstance(source, OnDevice)
    if out is source.inner:
        return source
    COUNTS.kernels[f"{site()} cast"] += 1
    return OnDevice(out)


def _ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _on_cpu(x: Any) -> Any:
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == NAME else x


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, OnDevice) else x


def _wrapped(x: Any) -> Any:
    return OnDevice(x) if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice) else x
