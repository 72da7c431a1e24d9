"""Scan of a session that is shared with a notebook: its methods run in the worker of the session, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sam2_3dmed_jax.scan.scan import Scan
from sam2_3dmed_jax.server.session import InteractiveSession

PROPERTIES = frozenset(
    {"shape", "affine", "volume", "slice_axis", "zoom", "objects", "prompts", "can_undo", "can_redo", "has_preview"}
)
# Methods that change prompts or objects return at once, and the session shows what they change.
CHANGES = frozenset(
    {
        "click",
        "box",
        "draw",
        "scribble",
        "clear",
        "reset",
        "undo",
        "redo",
        "name_object",
        "load_prompts",
        "prompt_from",
        "set_zoom",
    }
)
# Methods that need masks wait until the masks of all slices are complete.
READS = frozenset(
    {
        *("preview", "propagate", "encode", "warm_up", "free_features", "mask", "volumes_ml", "to_nibabel", "save"),
        *("save_prompts", "prompt_set", "prompt_files", "record"),
    }
)


class SharedScan:
    """The scan of a session, for use in any thread; it has the properties and methods of `Scan`.

    A `Scan` is used by one thread at a time. Here, the worker of the session calls its methods, in turn with the
    session's own work, and the caller waits for the result.
    """

    def __init__(self, session: InteractiveSession):
        """Share the scan of a session."""
        self._session = session

    def __getattr__(self, name: str) -> Any:
        """Return a property of the scan, or a function that calls its method in the worker."""
        if name in PROPERTIES:
            return getattr(self._session.scan, name)
        if name in CHANGES:
            return self._calling(name, self._session.change)
        if name in READS:
            return self._calling(name, self._session.read)
        raise AttributeError(f"a scan has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        """Return the names of properties and methods, for completion."""
        return sorted({*super().__dir__(), *PROPERTIES, *CHANGES, *READS})

    def _calling(self, name: str, submit: Callable[[Callable[[Scan], Any]], Any]) -> Callable[..., Any]:
        def method(*args: Any, **kwargs: Any) -> Any:
            return submit(lambda scan: getattr(scan, name)(*args, **kwargs)).result()

        method.__name__ = name
        method.__doc__ = getattr(Scan, name).__doc__
        return method
