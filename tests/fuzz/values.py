"""Hostile values and edits, drawn by Hypothesis from the bytes of a seeded generator.

`fuzz_one_input` turns bytes into drawn values without Hypothesis's database or the constants of loaded modules, so that
an input depends on nothing but its seed, kind and number.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BYTES = 1 << 12  # that a draw may use
NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**53, 2**63 - 1, 2**63, 2**64, -(2**31), -(2**63), 10**9, 10**18, 10**30, 10**400),
    *(0.0, -0.0, 0.5, -1.5, 1e-9, 1e-40, 5e-324, 1e9, 1e20, 1e38, 1e39, 1.7e308, float("inf"), float("-inf")),
    float("nan"),
)
TEXTS = (
    *("", " ", ".", "..", "../x", "../../../../../../etc/passwd", "x/../../y", "./x", "x/", "//x", "\\x", "C:\\x"),
    *(
        "/",
        "/etc/passwd",
        "/proc/self/mem",
        "/proc/self/environ",
        "/proc/kmsg",
        "/dev/zero",
        "/dev/random",
        "/dev/fd/0",
    ),
    *("~", "~root/x", "$HOME", "$(touch x)", "`touch x`", "; touch x", "| touch x", "*", "-x", "--out"),
    *("http://127.0.0.1:9/x", "https://example.org/x.nii.gz", "file:///etc/passwd", "gs://b/x", "hf://a/b"),
    *("%s%s%s%n", "{0}", "{}", "None", "null", "true", "nan", "inf", "-1", "1e400", "0x10", "1_000", "٣", "9" * 5000),
    *("\0", "a\0b", "a\nb", "a\r\nb", "\x1b[31mred", "\x07", "\x7f", "\u202e", "\u2028", "\ufeff", "\ud800", "a\udfff"),
    *("é" * 150, "x" * 255, "x" * 300, "x" * 5000, "x" * 10**6, "x/" * 3000, "x," * 3000, "[" * 3000, "😀" * 70),
    *("LOCAL", "LIST", "ct.raw", "=1+1", "a,b", '"', "'", "<b>", "000", "case_0", "imagesTr/case_0.nii.gz"),
)
DEEP = tuple(f"@deep {depth}" for depth in (50, 250, 5000, 200_000))  # replaced by `mutations` in the text of JSON
ACTIONS = ("replace", "delete", "repeat", "rename", "add", "swap", "wrap", "token")


@dataclass(frozen=True)
class Edit:
    """A change of one element of a structured text; which actions make sense depends on the format."""

    where: int  # number of the element, modulo their count
    action: str
    value: Any
    other: int  # a second number, such as of the element to swap with


def _texts() -> st.SearchStrategy[str]:
    # Every character, surrogates and control characters included.
    return st.one_of(st.sampled_from(TEXTS), st.text(st.characters(), max_size=40))


def _scalars() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.sampled_from(NUMBERS),
        st.integers(),
        st.floats(),
        _texts(),
        st.sampled_from(DEEP),
        st.sampled_from((None, True, False)),
    )


VALUES = st.recursive(
    _scalars(),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_texts(), inner, max_size=3)),
    max_leaves=6,
)
EDITS = st.lists(
    st.builds(Edit, st.integers(0, 2**16 - 1), st.sampled_from(ACTIONS), VALUES, st.integers(0, 2**16 - 1)),
    min_size=1,
    max_size=3,
)


@functools.cache
def _drawer() -> tuple[Callable[[bytes], object], list[list[Edit]]]:
    drawn: list[list[Edit]] = []

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(EDITS)
    def take(edits: list[Edit]) -> None:
        drawn.append(edits)

    return take.hypothesis.fuzz_one_input, drawn  # type: ignore[attr-defined]


def draw_edits(chance: random.Random) -> list[Edit]:
    """Return some edits, a function of the state of the generator alone."""
    draw, drawn = _drawer()
    while True:
        drawn.clear()
        draw(chance.randbytes(BYTES))
        if drawn:  # otherwise the bytes did not suffice
            return drawn[-1]
