"""XLA's options for programs that a test runs a few times: half the time to compile, and the same numbers."""

QUICK = {"xla_backend_optimization_level": 0}
