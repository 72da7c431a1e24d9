"""Interactive session: one open image, one worker thread, prompts that interrupt propagation, and events.

All work on the `Scan` runs in the worker thread, in this order of precedence: changes of prompts, each of which
interrupts other work and is answered with the slice of the prompt; propagation to the other slices; reads, such as
saving; and what makes later prompts fast: compilation of the programs of a first click, encoding of the slices that are
not encoded yet, and compilation of all other programs.

Methods may be called from any thread, and return at once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from sam2_3dmed_jax.errors import UserError
from sam2_3dmed_jax.runtime.progress import Progress
from sam2_3dmed_jax.scan.scan import Scan
from sam2_3dmed_jax.server.events import (
    Activity,
    Closed,
    Event,
    Failed,
    Listener,
    ProgressMade,
    SessionState,
    SliceChanged,
    SliceKey,
    StateChanged,
)

T = TypeVar("T")

ENDED = "the session has ended; open the image again"
INTERNAL_ERROR = "an internal error occurred; the log contains it"

_log = logging.getLogger(__name__)


class _Arrival(NamedTuple):
    """A change of prompts that has arrived."""

    time: float  # of `time.perf_counter`
    propagate: bool


@dataclass(frozen=True, eq=False)
class _Preparation:
    """Work that makes later clicks fast."""

    activity: Activity
    work: Callable[[], bool]  # returns whether it is complete; False if it was interrupted


class InteractiveSession:
    """Segments one image for one user, who may have several pages open."""

    def __init__(self, open_scan: Callable[[Progress], Scan], prompts_file: Path | None = None):
        """Open an image, restore its prompts, and begin to encode it.

        Args:
            open_scan: returns the scan; it is called at once, in the calling thread, with the scan's progress.
            prompts_file: JSON of prompts, written after each change; if it exists, prompts are restored from it.

        Raises:
            UserError: the image or the file of prompts cannot be read.
        """
        self._listeners: list[Listener] = []
        self._lock = threading.RLock()  # of listeners, shown masks and the state
        self._shown: dict[SliceKey, SliceChanged] = {}  # masks that are not empty
        self._state = SessionState()

        self._work = threading.Condition()  # of the queues and flags below
        self._changes: deque[Callable[[], None]] = deque()
        self._reads: deque[Callable[[], None]] = deque()
        self._interrupt_propagation = threading.Event()
        self._interrupt_encoding = threading.Event()
        self._is_stale = False  # propagation is needed
        self._encoding = _Preparation("encoding", self._encode)
        self._preparations = (
            _Preparation("preparing", functools.partial(self._warm_up, first_only=True)),
            self._encoding,
            _Preparation("preparing", self._warm_up),
        )
        self._prepared: set[_Preparation] = set()
        self._is_closed = False
        self._near: int | None = None

        self._users = 0
        self._last_used = time.monotonic()

        self.scan = open_scan(self._progress)
        self._prompt_files = None if prompts_file is None else self.scan.prompt_files(prompts_file)
        # Prompts are written during the preview: after it, a crash while it compiles would lose a click; before it, a
        # click would wait for label maps.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompts of a session")
        if prompts_file is not None and prompts_file.exists():
            self.scan.load_prompts(prompts_file)
        self._is_stale = bool(self.scan.prompts)
        self._update_state(revision=int(self._is_stale))
        self._thread = threading.Thread(target=self._run, name="interactive session", daemon=True)
        self._thread.start()

    # Events

    @property
    def state(self) -> SessionState:
        """The current state."""
        return self._state

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call a listener with the state and all masks as they are now, and then with each event.

        Args:
            listener: called from any thread; must return at once, as `EventStream.put` does.

        Returns:
            A function that ends the subscription.
        """
        with self._lock:
            listener(StateChanged(self._state))
            for shown in self._shown.values():
                listener(shown)
            if self._is_closed:
                listener(Closed())
            self._listeners.append(listener)

        def unsubscribe() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return unsubscribe

    # Work

    def change(self, work: Callable[[Scan], T], propagate: bool = True) -> Future[T]:
        """Change prompts or objects: `session.change(lambda scan: scan.click((x, y, z), object=2))`.

        Propagation is interrupted, and starts again from the new prompts. If the prompts have changed, listeners get a
        `SliceChanged` of the latest prompt's slice within the time of one slice, and then one for each slice that
        changes.

        Args:
            work: the change.
            propagate: whether masks are computed at once; otherwise `read` or a later change computes them.

        Returns:
            The future result of `work`, or its `UserError`; it is known before the masks are. Use
            `asyncio.wrap_future` in coroutines.
        """
        return self._submit(work, self._changes, _Arrival(time.perf_counter(), propagate))

    def read(self, work: Callable[[Scan], T]) -> Future[T]:
        """Use the complete masks: `session.read(lambda scan: scan.save(path))`.

        It runs after the current propagation, which it does not interrupt. A later change waits for it.

        Returns:
            The future result of `work`, or its `UserError`.
        """
        return self._submit(work, self._reads)

    def look_at(self, index: int) -> None:
        """Encode the slices near this slice, an index along `Scan.slice_axis`, first."""
        with self._work:
            is_slice = 0 <= index < self.scan.shape[self.scan.slice_axis]
            if is_slice and index != self._near and self._encoding not in self._prepared:
                self._near = index
                self._interrupt_encoding.set()

    def close(self, timeout: float | None = None) -> bool:
        """Interrupt all work, write the prompts, and end the worker.

        Args:
            timeout: seconds to wait for the worker; None: until it has ended.

        Returns:
            Whether the worker has ended.
        """
        with self._work:
            self._is_closed = True
            self._interrupt_propagation.set()
            self._interrupt_encoding.set()
            self._work.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # Use

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Mark the session as in use during the block, as during each request, so that it is not evicted."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                self._last_used = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last use; 0 while in use."""
        with self._lock:
            return 0.0 if self._users else time.monotonic() - self._last_used

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    # The worker

    def _submit(
        self, work: Callable[[Scan], T], queue: deque[Callable[[], None]], arrival: _Arrival | None = None
    ) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            before, objects, zoom = self.scan.prompts, self.scan.objects, self.scan.zoom
            try:
                if self._is_closed and queue is self._reads:  # its masks may take minutes
                    raise UserError(ENDED)
                result = work(self.scan)
            except UserError as error:
                future.set_exception(error)
            except Exception as error:
                _log.exception("a request failed")
                future.set_exception(error)
            else:
                future.set_result(result)
            if self.scan.zoom != zoom:
                self._prepared.discard(self._encoding)  # features of other slices are needed
            if self.scan.prompts is not before or (before and self.scan.zoom != zoom):
                self._answer(arrival)
            elif self.scan.objects != objects:
                self._update_state()
                self._write_prompts().result()

        with self._work:
            if self._is_closed:
                raise UserError(ENDED)
            queue.append(run)
            self._interrupt_encoding.set()
            if queue is self._changes:
                self._interrupt_propagation.set()
            self._work.notify()
        return future

    def _run(self) -> None:
        while work := self._next_work():
            self._do(work)
        for pending in (*self._changes, *self._reads):  # of callers that wait
            self._do(pending)
        self.scan.free_features()  # Cycles of references would keep them, on the device, until a garbage collection.
        self._writer.shutdown()
        self._publish(Closed())

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except UserError as error:
            self._publish(Failed(str(error)))
        except Exception:
            _log.exception("work on a session failed")
            self._publish(Failed(INTERNAL_ERROR))

    def _next_work(self) -> Callable[[], None] | None:
        """Return the work to do, once there is some; None if the session is closed."""
        with self._work:
            while not self._is_closed:
                if self._changes:
                    return self._as("answering", self._changes.popleft())
                self._interrupt_propagation.clear()
                self._interrupt_encoding.clear()
                if self._is_stale:
                    return self._as("propagating", self._propagate)
                if self._reads:
                    return self._as("reading", self._reads.popleft())
                for preparation in self._preparations:
                    if preparation not in self._prepared:
                        return self._as(preparation.activity, functools.partial(self._prepare, preparation))
                self._update_state(activity="idle")
                self._work.wait()
        return None

    def _as(self, activity: Activity, work: Callable[[], None]) -> Callable[[], None]:
        self._update_state(activity=activity)
        return work

    def _answer(self, arrival: _Arrival | None) -> None:
        """Show the latest prompt's slice and remove masks without prompts, after a change of prompts."""
        propagate = arrival is None or arrival.propagate
        written = self._write_prompts()
        with self._work:
            self._is_stale = bool(self.scan.prompts) and propagate
        self._update_state(revision=self._state.revision + 1, is_complete=False, volumes_ml={})
        prompted = self._state.prompted
        for key, shown in list(self._shown.items()):
            if key.object_id not in prompted:
                self._show(key, np.zeros(shown.shape, bool))
        is_seen = bool(self._listeners)  # viewers wait for the complete masks, and have no listener
        if self.scan.has_preview and propagate and is_seen and not self._is_closed:
            object_id, index, mask = self.scan.preview()
            self._show(SliceKey(object_id, index), mask, is_preview=True)
            if arrival is not None:
                self._update_state(click_seconds=time.perf_counter() - arrival.time)
        written.result()

    def _propagate(self) -> None:
        """Segment all slices, unless a change interrupts it."""
        with self._work:
            self._is_stale = False  # also if it fails, since it would fail again

        def on_slice(object_id: int, index: int, mask: np.ndarray) -> None:
            self._show(SliceKey(object_id, index), mask)

        if self.scan.propagate(on_slice, self._interrupt_propagation):
            self._update_state(is_complete=True, volumes_ml=self.scan.volumes_ml())
            return
        with self._work:
            self._is_stale = True  # the change that interrupts may fail, or concern no prompts

    def _prepare(self, preparation: _Preparation) -> None:
        """Do what makes later clicks fast, until a request interrupts it."""
        try:
            is_done = preparation.work()
        except Exception:
            self._prepared.add(preparation)  # it would fail again
            raise
        if is_done:
            self._prepared.add(preparation)

    def _encode(self) -> bool:
        return self.scan.encode(self._near, self._interrupt_encoding)

    def _warm_up(self, first_only: bool = False) -> bool:
        return self.scan.warm_up(self._interrupt_encoding, first_only)

    def _write_prompts(self) -> Future[None]:
        """Begin to write the prompts as they are now."""
        prompts = self.scan.prompt_set()
        return self._writer.submit(lambda: self._prompt_files.write(prompts) if self._prompt_files else None)

    # State

    def _show(self, key: SliceKey, mask: np.ndarray, is_preview: bool = False) -> None:
        """Publish the mask of a slice if it has changed."""
        height, width = mask.shape
        packed = np.packbits(mask)
        with self._lock:
            shown = self._shown.get(key)
            if (shown is None and not packed.any()) or (shown and np.array_equal(shown.packed, packed)):
                return
            event = SliceChanged(key, packed, (height, width), self._state.revision, is_preview)
            if packed.any():
                self._shown[key] = event
            else:
                del self._shown[key]
            self._publish(event)

    def _update_state(self, **changes: Any) -> None:
        """Publish the state, with what is known of the scan, if it has changed; called by the worker."""
        scan = self.scan
        state = replace(
            self._state,
            objects=scan.objects,
            prompts=scan.prompts,
            can_undo=scan.can_undo,
            can_redo=scan.can_redo,
            **changes,
        )
        with self._lock:
            if state != self._state:
                self._state = state
                self._publish(StateChanged(state))

    def _progress(self, what: str, done: int, total: int, note: str = "") -> None:
        self._publish(ProgressMade(what, done, total))

    def _publish(self, event: Event) -> None:
        with self._lock:
            for listener in list(self._listeners):
                listener(event)
