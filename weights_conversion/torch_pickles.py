"""Check of the pickles in PyTorch's `.pt` files, before PyTorch unpickles them.

`weights_only=True` runs no code of the file, but a pickle of a few bytes may still take any amount of memory:
`bytearray(10**10)`, millions of nested marks, or members that are deflated, which `torch.save` never does. The
instructions are read without executing them (`pickletools`), and everything except containers and tensors is refused.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO

from sam2_3dmed_jax.errors import UserError, cut

_MOST_BYTES = 2**23  # of the pickle of a zip file; about 40,000 tensors
_MOST_INSTRUCTIONS = 2**22  # of all pickles; a tensor takes about 60
_MOST_MARKS = 1000  # that are open at once; one per container that contains the others
_OLD_PICKLES = 4  # of the format before PyTorch 1.6: a number, the version, the system and the object
# Everything that makes tensors, and containers whose size in memory is bounded by the size of the pickle.
_KNOWN = re.compile(
    r"torch(\.\S+)? \S+|collections (OrderedDict|Counter|defaultdict)"
    r"|(__builtin__|builtins) (set|dict|list|tuple|complex)"
)


def check_pickles(path: Path, is_zip: bool) -> None:
    """Check the pickles of a file.

    Args:
        path: the file.
        is_zip: it has the format of PyTorch 1.6 and later.

    Raises:
        UserError: a pickle contains other objects than tensors and containers, or takes much memory.
    """
    try:
        if is_zip:
            _check_zip(path)
        else:
            with path.open("rb") as file:
                left = _MOST_INSTRUCTIONS
                for _ in range(_OLD_PICKLES):
                    left -= _check_pickle(path, file, left)
    except UserError:
        raise
    except Exception as error:  # pickletools and zipfile raise many kinds on damaged data
        reason = cut((str(error) or type(error).__name__).splitlines()[0], 100)
        raise UserError(f"{path}: it cannot be read as a PyTorch file ({reason}); download it again") from error


def _check_zip(path: Path) -> None:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        compressed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
        if compressed or sum(member.file_size for member in members) > size:
            raise UserError(
                f"{path}: it contains compressed or overlapping parts, which PyTorch never writes; save it again with "
                "torch.save"
            )
        for member in members:
            if member.filename.rpartition("/")[2] != "data.pkl":
                continue
            if member.file_size > _MOST_BYTES:
                raise _too_large(path)
            with archive.open(member) as file:
                _check_pickle(path, file, _MOST_INSTRUCTIONS)


def _check_pickle(path: Path, file: IO[bytes], most: int) -> int:
    """Check the pickle that an open file is positioned at, and return the number of its instructions."""
    marks = 0
    count = 0
    for count, (instruction, argument, _) in enumerate(pickletools.genops(file), 1):
        name = instruction.name
        if name == "MARK":
            marks += 1
        elif pickletools.markobject in instruction.stack_before:
            marks -= 1
        elif name in ("GLOBAL", "INST") and not _KNOWN.fullmatch(str(argument)):
            raise UserError(
                f"{path}: it contains code or objects other than tensors ({cut(str(argument), 60)}), and was not run; "
                "give a file that contains only the weights"
            )
        if count > most or marks > _MOST_MARKS:
            raise _too_large(path)
    return count


def _too_large(path: Path) -> UserError:
    return UserError(f"{path}: its list of tensors is larger than that of any model; save only the state_dict")
