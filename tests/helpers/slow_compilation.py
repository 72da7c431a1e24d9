"""A command that compiles a large program while it writes FILE: `slow_compilation.py main|other FILE`.

The first argument is the thread that compiles.
"""

import signal
import sys
from concurrent.futures import ThreadPoolExecutor

from sam2_3dmed_jax.commands import doctor
from sam2_3dmed_jax.commands.command_line import start
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.runtime.atomic_files import atomic_path

STEPS = 3000  # XLA compiles for about half a minute


def compile_large_program() -> None:
    import jax

    def large(x: jax.Array) -> jax.Array:
        for step in range(STEPS):
            x = jax.lax.sin(x @ x) if step % 2 else jax.lax.cos(x) + step
        return x

    jax.jit(large).lower(jax.ShapeDtypeStruct((8, 8), "float32")).compile()


def command(thread: str, file: str) -> None:
    start()
    with atomic_path(file), ThreadPoolExecutor(1) as pool:
        if thread == "main":
            compile_large_program()
        else:
            pool.submit(compile_large_program).result()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    thread, file = sys.argv[1:]
    doctor.run = lambda options: command(thread, file)
    sys.argv[1:] = ["doctor"]
    sys.exit(main())
