"""Choice of the model in a file that wraps it: prefixes of names, and dictionaries around the weights.

The path of a tensor is its name after the keys of the dictionaries that contain it, joined by dots. What precedes the
first part that the table of names knows is a prefix (`module.`, `model.`, `state_dict.model.`). All tensors with one
prefix are one model. Other contents of the file (an optimizer, an epoch, a second model) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sam2_3dmed_jax.errors import UserError, cut, listed
from weights_conversion.names import ROWS

# Parts that DataParallel, `torch.compile`, FSDP and activation checkpointing insert anywhere in a name.
INSERTED = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# The keys of the model itself, next to the keys of other models such as `model_ema`.
PLAIN = frozenset({"model", "state_dict", "model_state_dict"})
LEFT_OUT = 10  # names of contents that are left out, in the provenance


@dataclass(frozen=True)
class Contents:
    """The paths of everything in a file, with the path of the dictionary that contains it (`""`: the file itself)."""

    tensors: Mapping[str, str]
    objects: Mapping[str, str] = field(default_factory=dict)  # everything that is not a tensor by name


@dataclass(frozen=True)
class Choice:
    """The model in a file."""

    paths: dict[str, str]  # from the name of a tensor in its layout to its path in the file
    reading: dict[str, str]  # prefix, inserted parts and contents that are left out, for the provenance


@dataclass(frozen=True)
class _Path:
    path: str
    prefix: str  # as in the file
    model: str  # the prefix without inserted parts, which identifies the model
    name: str  # without inserted parts


def choose_model(file: Path, contents: Contents) -> Choice:
    """Return the model in a file.

    Args:
        file: the file, for errors.
        contents: what it contains.

    Raises:
        UserError: it contains several models of which none is the plain one, a dictionary with something else than
            tensors, or two tensors that have the same name without inserted parts.
    """
    split = [_split(path) for path in contents.tensors]
    models: dict[str, dict[str, _Path]] = {}
    for part in split:
        if part is None:
            continue
        other = models.setdefault(part.model, {}).setdefault(part.name, part)
        if other is not part:
            raise UserError(f"{file}: {other.path} and {part.path} are both {part.name}; save the model once")
    if not models:
        if contents.objects and not contents.tensors:
            raise _not_tensors(file, contents.objects)
        return Choice({path: path for path in contents.tensors}, {})
    # A few tensors of another prefix are no second model; they are unexpected, and the conversion names them.
    most = max(map(len, models.values()))
    whole = [model for model, tensors in models.items() if 2 * len(tensors) >= most]
    chosen = _chosen(file, whole)
    used = {part.path for part in models[chosen].values()}
    dictionaries = {contents.tensors[path] for path in used}
    if wrong := [path for path, inside in contents.objects.items() if inside in dictionaries]:
        raise _not_tensors(file, wrong)
    paths = {name: part.path for name, part in models[chosen].items()}
    left_out = list(contents.objects)
    for path, part in zip(contents.tensors, split, strict=True):
        if path in used:
            continue
        if contents.tensors[path] in dictionaries and (part is None or part.model not in whole):
            paths[path] = path
        else:
            left_out.append(part.model if part else path)
    return Choice(paths, _reading(models[chosen].values(), left_out))


def _split(path: str) -> _Path | None:
    """Return a path as prefix and name; None: no part of it begins a name of a layout."""
    parts = path.split(".")
    at = next((k for k, part in enumerate(parts) if part in ROOTS), None)
    if at is None:
        return None
    model, name = ([part for part in some if part not in INSERTED] for some in (parts[:at], parts[at:]))
    return _Path(path, _dotted(parts[:at]), _dotted(model), ".".join(name))


def _dotted(parts: Iterable[str]) -> str:
    return "".join(f"{part}." for part in parts)


def _roots() -> Iterator[str]:
    """Return the first part of all names in the foreign layouts."""
    for row in ROWS:
        foreign = (row.transformers,) if isinstance(row.transformers, str) else row.transformers
        for pattern in (row.meta or row.native, *foreign):
            yield re.split(r"[.\[]", pattern)[0]


ROOTS = frozenset(_roots())


def _chosen(file: Path, models: list[str]) -> str:
    if len(models) == 1:
        return models[0]
    plain = [model for model in models if set(model.split(".")[:-1]) <= PLAIN]
    if len(plain) == 1:
        return plain[0]
    shown = listed([f"'{model}'" if model else "no prefix" for model in models])
    raise UserError(f"{file}: it contains {len(models)} models, with the prefixes {shown}; save one of them alone")


def _reading(used: Iterable[_Path], left_out: Iterable[str]) -> dict[str, str]:
    """Return the record of how the model was found; empty if its names are exactly the names of a layout."""
    used = list(used)
    prefixes = sorted({part.prefix for part in used} - {""})
    inserted = sorted({word for part in used for word in part.path[len(part.prefix) :].split(".")} & INSERTED)
    others = list(dict.fromkeys(path.split(".")[0] for path in left_out))
    reading = {
        "prefix": listed(prefixes),
        "inserted": listed(inserted),
        "left_out": listed(others, LEFT_OUT),
    }
    return {key: text for key, text in reading.items() if text}


def _not_tensors(file: Path, paths: Iterable[str]) -> UserError:
    names = [cut(path, 40) for path in paths]
    return UserError(
        f"{file}: it contains objects other than tensors by name ({listed(names)}); save only the state_dict of the "
        "model"
    )
