"""What makes programs of tests compile fast."""

# XLA's options for programs that a test runs a few times: half the time to compile, and the same numbers.
QUICK = {"xla_backend_optimization_level": 0}
# `training.frozen` of runs that may train any part: with the mask decoder alone, the step compiles three times as fast.
ONLY_DECODER = (r"^(?!sam_mask_decoder\.(?!conv_s))",)
