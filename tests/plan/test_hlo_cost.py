"""Cost of a compiled program: traffic per loop iteration, in HBM only, each collective once, and kernel launches."""

import pytest

from sam2_3dmed_jax.plan.hlo_cost import program_cost
from sam2_3dmed_jax.plan.hlo_text import array_bytes, parse_module

KNOWN = ', backend_config={"known_trip_count":{"n":"7"}}'
TEXT = """HloModule jit_f, is_scheduled=true

%slice_fusion (p0: f32[7,64], p1: s32[]) -> f32[1,64] {
  %p0 = f32[7,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %ds = f32[1,64]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,64}
}

%all-reduce-scatter.1 (a: f32[64]) -> f32[16] {
  %a = f32[64]{0} parameter(0)
  %ar = f32[64]{0} all-reduce(%a), channel_id=2, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %part = f32[16]{0} slice(%ar), slice={[0:16]}
}

%body (c: (s32[], f32[7,64], f32[64])) -> (s32[], f32[7,64], f32[64]) {
  %c = (s32[], f32[7,64]{1,0}, f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %xs = f32[7,64]{1,0} get-tuple-element(%c), index=1
  %x = f32[64]{0} get-tuple-element(%c), index=2
  %one = s32[] constant(1)
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  %row = f32[1,64]{1,0:T(8,128)S(1)} fusion(%xs, %i), kind=kLoop, calls=%slice_fusion
  %sum = f32[64]{0} all-reduce(%x), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%add
  %kept = f32[16]{0:T(128)S(1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %out = (s32[], f32[7,64]{1,0}, f32[64]{0}) tuple(%next, %xs, %sum)
}

%condition (c: (s32[], f32[7,64], f32[64])) -> pred[] {
  %c = (s32[], f32[7,64]{1,0}, f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %end = s32[] constant(7)
  ROOT %lt = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (xs: f32[7,64], x: f32[64]) -> f32[64] {
  %xs = f32[7,64]{1,0} parameter(0), metadata={op_name="batch[\\'slices\\']"}
  %x = f32[64]{0} parameter(1)
  %start = s32[] constant(0)
  %init = (s32[], f32[7,64]{1,0}, f32[64]{0}) tuple(%start, %xs, %x)
  %loop = (s32[], f32[7,64]{1,0}, f32[64]{0}) while(%init), condition=%condition, body=%body KNOWN
  ROOT %r = f32[64]{0} get-tuple-element(%loop), index=2
}
"""


@pytest.mark.parametrize("known", [KNOWN, ""])
def test_a_loop_counts_as_often_as_xlas_annotation_or_its_condition_says(known):
    cost = program_cost(parse_module(TEXT.replace(" KNOWN", known)))
    assert cost.by_kind() == {"all-reduce": 7 * 256, "reduce-scatter": 7 * 256}
    assert cost.unknown_loops == 0
    # Per iteration: the slice read (256), not its result on the chip; 4 to count; all-reduce 256 in and out; 256 read.
    assert cost.bytes == 7 * (256 + 4 + 4 + 4 + 512 + 256)


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    endless = TEXT.replace(" KNOWN", "").replace("%end = s32[] constant(7)", "%end = s32[] multiply(%i, %i)")
    cost = program_cost(parse_module(endless))
    assert cost.unknown_loops == 1
    assert cost.by_kind() == {"all-reduce": 256, "reduce-scatter": 256}


def test_an_array_in_memory_on_the_chip_takes_no_hbm():
    shape = "(bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[3]{0}, pred[5], u32[])"
    assert array_bytes(shape) == [64, 12, 5, 4]
    assert array_bytes(shape, hbm_only=True) == [0, 12, 5, 4]


def test_a_parameter_has_the_name_of_its_argument():
    module = parse_module(TEXT.replace(" KNOWN", ""))
    assert module.computations[module.entry].parameters[0].source == "batch['slices']"


BRANCHES = """
%cheap (a: f32[64]) -> f32[64] {
  ROOT %a = f32[64]{0} parameter(0)
}

%costly (b: f32[64]) -> f32[64] {
  %b = f32[64]{0} parameter(0)
  %product = f32[64]{0} custom-call(%b, %b), custom_call_target="__cublas$lt$matmul"
  ROOT %copy = f32[64]{0} copy(%product)
}

ENTRY"""


def with_conditional(text):
    """Return `TEXT` with a conditional of no and of two kernels in the body of its loop, in place of the all-reduce."""
    call = "conditional(%next, %x, %x), branch_computations={%cheap, %costly}"
    start, end = text.index("all-reduce(%x), channel_id=1"), text.index("%kept =")
    return (text[:start] + call + "\n  " + text[end:]).replace("\nENTRY", BRANCHES)


@pytest.mark.parametrize("known", [KNOWN, ""])
def test_kernels_of_a_loop_count_as_often_as_it_runs(known):
    cost = program_cost(parse_module(TEXT.replace(" KNOWN", known)))
    assert (cost.kernels, cost.loop_trips) == (7 * 4, 7)  # counting, slicing, all-reduce and all-reduce-scatter
    assert (cost.conditionals, cost.conditionals_in_loops) == (0, 0)


def test_a_conditional_counts_with_its_most_expensive_branch_and_is_reported():
    cost = program_cost(parse_module(with_conditional(TEXT.replace(" KNOWN", KNOWN))))
    assert (cost.kernels, cost.loop_trips) == (7 * (3 + 2), 7)
    assert (cost.conditionals, cost.conditionals_in_loops) == (7, 7)


def test_a_conditional_outside_of_loops_is_not_one_in_a_loop():
    text = TEXT.replace(" KNOWN", KNOWN).replace("\nENTRY", BRANCHES)
    start = text.index("%start = s32[] constant(0)\n  %init")
    call = "%late = f32[64]{0} conditional(%start, %x, %x), branch_computations={%cheap, %costly}"
    start += len("%start = s32[] constant(0)")
    cost = program_cost(parse_module(f"{text[:start]}\n  {call}{text[start:]}"))
    assert (cost.conditionals, cost.conditionals_in_loops) == (1, 0)
    assert cost.kernels == 7 * 4 + 2
