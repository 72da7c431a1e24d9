"""Jupyter widget for segmentation by clicks: slices of a volume, prompts, and masks that arrive slice by slice.

The front end is one JavaScript file (`static/widget.js`), which anywidget sends to the notebook. It loads nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import anywidget

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.notebook.conversation import WidgetConversation
from sam2_3dmed_jax.notebook.shared_scan import SharedScan
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.scan.models import DEFAULT_MODEL
from sam2_3dmed_jax.scan.scan import Scan
from sam2_3dmed_jax.server.session import InteractiveSession

_STATIC = Path(__file__).parent / "static"


class VolumeWidget(anywidget.AnyWidget):
    """Shows a volume in a notebook and segments it by clicks. For research use only.

    Left clicks are inside of the object, right clicks or Alt and click outside of it. All slices are encoded in the
    background, and each click is answered with its slice first. `close` ends this work and frees the memory.
    """

    _esm = _STATIC / "widget.js"
    _css = _STATIC / "widget.css"

    def __init__(self, image: Any, model: Any = DEFAULT_MODEL, **options: Any):
        """Open an image; the model is loaded in the background.

        Args:
            image: a path or an image as in `Scan`, or a `Scan`, whose prompts are shown.
            model: as in `Scan`; a `Scan` has its own.
            options: further arguments of `Scan`, such as `affine` and `modality`, but not `progress`.

        Raises:
            UserError: the image or the checkpoint cannot be read, they do not fit, or a `Scan` is given a model or
                options.
        """
        if isinstance(image, Scan) and (model is not DEFAULT_MODEL or options):
            raise UserError("image: a Scan has its model and options already; leave them out")

        def open_scan(progress: Progress) -> Scan:
            return image if isinstance(image, Scan) else Scan(image, model, progress=progress, **options)

        self._session = InteractiveSession(open_scan)
        super().__init__()
        self._conversation = WidgetConversation(self._session, self.send)
        self.on_msg(lambda _, content, buffers: self._conversation.receive(content))

    @property
    def scan(self) -> Scan:
        """The image with its prompts and masks: `widget.scan.mask()` is uint16 `[i, j, k]`, as in `Scan`.

        Methods that need masks wait until all slices are segmented. Prompts that are added here appear in the widget.
        The object has the properties and methods of `Scan`, but calls them in the thread of the widget.
        """
        return cast(Scan, SharedScan(self._session))

    def close(self) -> None:
        """Remove the widget from the notebook, and end its work; masks that are needed must be saved before."""
        if "_session" in self.__dict__:  # it is missing if the image could not be opened
            self._session.close(timeout=0)
        super().close()
