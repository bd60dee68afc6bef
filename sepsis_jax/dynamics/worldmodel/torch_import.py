"""The published networks as PyTorch `state_dict` files, read and written bit for bit.

One file a network, `.pt` or `.safetensors`, with these keys (H hidden, L layers; `{weight,bias}` as PyTorch has them):

    both      static_embed, act_embed, gru.{weight,bias}_{ih,hh}_l{0..L-1}
    state     vent_head.{0,2}, trans_pre.0, mu_head, log_sigma_head
    outcome   outcome_head.{0,3}

PyTorch keeps a matrix as [out, in], flax as [in, out]; gates, both GRU biases and the order of inputs are the same
(`gru`, `published`). A `.pt` file is a pickle, which can run code: only PyTorch's own restricted loader reads it.
"""

from __future__ import annotations

import importlib
import io
import itertools
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx, traverse_util

from sepsis_jax import files
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.dynamics.worldmodel.published import PublishedNetwork
from sepsis_jax.errors import InputError

MAX_BYTES = 1 << 28  # the released networks have about one megabyte each
OLDEST_TORCH = (2, 10)  # before it, files that get past `weights_only` are known (CVE-2025-32434, CVE-2026-24747)

# Places inside PyTorch's nn.Sequential: activations and dropout have numbers too.
_PLACES = {"vent_head": (0, 2), "outcome_head": (0, 3)}
_LEAVES = {"kernel": "weight"}
_SIZE = "H and L are those of the state network; float32 is the only dtype: convert with .float() first"
_PLAIN = "the file must be the network's plain state_dict(), in no other dict and without prefixes on its keys"


def load_networks(state_file: Path | str, outcome_file: Path | str) -> tuple[WorldModel, dict[str, Any]]:
    """Read both networks.

    Args:
      state_file: `state_model_log.pt` or `.safetensors`. outcome_file: `outcome.pt` or `.safetensors`.

    Returns:
      The layout of one member, with H and L as in the files, and the weights f32[1,...] of its `Params.network`.

    Raises:
      InputError: a file is missing, too large, truncated, of another layout or dtype, not finite, or holds anything
        but arrays; or it is a `.pt` and PyTorch is missing or too old.
    """
    state, outcome = _read(Path(state_file)), _read(Path(outcome_file))
    model = _infer(state_file, state)
    layout = _layout(model)
    return model, {
        "state": _to_flax(state_file, state, layout["state"]),
        "outcome": _to_flax(outcome_file, outcome, layout["outcome"]),
    }


def save_networks(model: WorldModel, network: dict[str, Any], state_file: Path | str, outcome_file: Path | str) -> None:
    """Write the weights of a published world model with one member (`Params.network`), as `load_networks` reads them.

    Raises:
      InputError: the model is another one, a file is not `.pt` or `.safetensors` or cannot be written, or it is a
        `.pt` and PyTorch is missing or too old.
    """
    if (model.architecture, model.members) != ("published", 1):
        found = f"{model.architecture}, {model.members}"
        raise InputError("world_model", field="architecture, members", expected="published, 1", found=found)
    contents = {
        Path(file): _encode(Path(file), _to_torch(network[part]))
        for file, part in ((state_file, "state"), (outcome_file, "outcome"))
    }
    for file, content in contents.items():
        files.write(file, content)


# --- names and shapes ----------------------------------------------------------------------------------------


def _torch_name(path: tuple[str | int, ...]) -> str:
    """('trunk', 'gru', 'cells', 0, 'bias_ih') -> 'gru.bias_ih_l0'."""
    *layer, leaf = path[1:] if path[0] == "trunk" else path
    leaf = _LEAVES.get(str(leaf), leaf)
    match layer:
        case ["gru", "cells", index]:
            return f"gru.{leaf}_l{index}"
        case ["trans_pre"]:
            return f"trans_pre.0.{leaf}"
        case [head, int(index)]:
            return f"{head}.{_PLACES[str(head)][index]}.{leaf}"
        case [name]:
            return f"{name}.{leaf}"
    raise ValueError(f"no PyTorch name for {path}")


def _to_torch(weights: dict[str, Any]) -> dict[str, np.ndarray]:
    """Nested flax weights with leading 1 -> state_dict of C-contiguous arrays."""
    flat = traverse_util.flatten_dict(weights)
    return {_torch_name(path): np.ascontiguousarray(np.asarray(leaf)[0].T) for path, leaf in flat.items()}


def _to_flax(file: Path | str, arrays: dict[str, np.ndarray], layout: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `_to_torch`. `arrays` must have the keys, shapes and dtypes of `layout`, and finite numbers."""
    expected = {_torch_name(path): (path, leaf) for path, leaf in traverse_util.flatten_dict(layout).items()}
    for name in sorted(expected.keys() ^ arrays.keys()):
        wanted, found = ("an array", "no such key") if name in expected else ("no such key", "an array")
        raise InputError(file, field=name, expected=wanted, found=found, hint=_PLAIN)
    weights = {}
    for name, (path, leaf) in expected.items():
        array = arrays[name].T
        wanted, found = (f"{kind.dtype}{list(kind.shape[::-1])}" for kind in (leaf, array))
        if wanted != found:
            raise InputError(file, field=name, expected=wanted, found=found, hint=_SIZE)
        if not np.isfinite(array).all():
            raise InputError(file, field=name, expected="finite numbers", found="NaN or infinity")
        weights[path] = jnp.asarray(array[None])
    return traverse_util.unflatten_dict(weights)


def _infer(file: Path | str, state: dict[str, np.ndarray]) -> WorldModel:
    """The layout, from the recurrent weights of the state network."""
    first = "gru.weight_hh_l0"
    if first not in state:
        raise InputError(file, field=first, expected="an array", found="no such key", hint=_PLAIN)
    shape = state[first].shape
    hidden = shape[-1] if shape else 0
    if not hidden or shape != (3 * hidden, hidden):
        raise InputError(file, field=first, expected="the shape [3H,H]", found=list(shape))
    layers = next(layer for layer in itertools.count(1) if f"gru.weight_hh_l{layer}" not in state)
    return WorldModel("published", hidden, layers)


def _layout(model: WorldModel) -> dict[str, Any]:
    """Nested jax.ShapeDtypeStruct of the weights, for both networks."""

    def build() -> PublishedNetwork:
        return PublishedNetwork(model.hidden, model.layers, model.dropout, rngs=nnx.Rngs(0))

    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(build)))


# --- files ---------------------------------------------------------------------------------------------------


def _read(file: Path) -> dict[str, np.ndarray]:
    """Arrays by key, within MAX_BYTES; nothing else of them is known yet."""
    _check_suffix(file)
    if not file.is_file():
        raise InputError(file, expected="a file", found="none")
    _check_size(file, file.stat().st_size)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(file, expected="a readable file", found=error.strerror) from error
    arrays = _read_pt(file, content) if file.suffix == ".pt" else _read_safetensors(file, content)
    _check_size(file, sum(array.nbytes for array in arrays.values()))
    return arrays


def _encode(file: Path, arrays: dict[str, np.ndarray]) -> bytes:
    """What `file` will hold."""
    _check_suffix(file)
    if file.suffix == ".safetensors":
        return safetensors.numpy.save(arrays)
    torch, content = _torch(file), io.BytesIO()
    torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, content)
    return content.getvalue()


def _check_suffix(file: Path) -> None:
    if file.suffix not in (".pt", ".safetensors"):
        raise InputError(file, expected="a file named .pt or .safetensors", found=file.suffix or "no suffix")


def _check_size(file: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise InputError(file, expected=f"at most {MAX_BYTES:,} bytes", found=f"{size:,} bytes")


def _read_safetensors(file: Path, content: bytes) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(content)
    except Exception as error:  # KeyError for a dtype that NumPy lacks, SafetensorError for a broken file
        hint = "it is cut short, or not of float32"
        raise InputError(file, expected="float32 arrays as safetensors", found=repr(error), hint=hint) from error


def _read_pt(file: Path, content: bytes) -> dict[str, np.ndarray]:
    torch = _torch(file)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except Exception as error:  # a broken archive can raise anything
        hint = "it is cut short, or saved by PyTorch before 1.6"
        raise InputError(file, expected="a file of torch.save", found="no zip archive", hint=hint) from error
    _check_size(file, unpacked)
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # what it says is to switch the safe loading off
        hint = "it is damaged, or holds objects, which could run code; nothing was loaded"
        raise InputError(file, expected="a state_dict of tensors", found=type(error).__name__, hint=hint) from None
    if not isinstance(loaded, dict):
        raise InputError(file, expected="a state_dict", found=type(loaded).__name__, hint=_PLAIN)
    return {str(name): _numpy(torch, file, str(name), value) for name, value in loaded.items()}


def _numpy(torch: Any, file: Path, name: str, value: Any) -> np.ndarray:
    """Shares the memory of the tensor, so that an expanded one stays small until its size is known."""
    if not isinstance(value, torch.Tensor):
        raise InputError(file, field=name, expected="a tensor", found=type(value).__name__, hint=_PLAIN)
    try:
        return value.detach().numpy()
    except (TypeError, RuntimeError):  # sparse, of no device, or of a dtype that NumPy lacks
        found = f"{value.dtype}, {value.layout}, {value.device}"
        raise InputError(file, field=name, expected="a dense float32 tensor", found=found) from None


def _torch(file: Path) -> Any:
    """PyTorch, which only `.pt` files need; loaded by name, since it is not among our dependencies."""
    oldest = ".".join(map(str, OLDEST_TORCH))
    expected = f"PyTorch {oldest} or newer to be installed, for .pt files"
    hint = f"pip install 'torch>={oldest}', or use .safetensors"
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise InputError(file, expected=expected, found="none", hint=hint) from error
    if torch.__version__ < OLDEST_TORCH:
        raise InputError(file, expected=expected, found=torch.__version__, hint=hint)
    return torch
