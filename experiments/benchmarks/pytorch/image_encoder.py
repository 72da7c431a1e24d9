"""Image encoder on one slice, up to the features that the mask decoder and memory attention read.

python -m experiments.benchmarks.pytorch.image_encoder [--size 512] [--dtype bfloat16]
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from experiments.benchmarks.pytorch.references import build, device, load, precision
from experiments.benchmarks.pytorch.side_by_side import SEED, Side, Work, counted, main
from tests.parity import compare, generated

# Relative to the largest magnitude. Float32: the order of sums differs. Bfloat16 has 8 bits of mantissa, 4e-3 of each
# number, and autocast rounds at other places than our code, in each of twelve blocks.
TOLERANCE = {"float32": compare.FEATURES, "bfloat16": 0.1}


def theirs(options: argparse.Namespace, folder: Path) -> Side:
    import torch

    model = build(options, folder, options.size)
    images = torch.from_numpy(generated.slices(1, options.size, SEED).transpose(0, 3, 1, 2).copy())
    images = images.to(device(options))

    def run() -> list:
        with torch.inference_mode(), precision(options):
            if options.reference == "meta":
                maps = model.forward_image(images)["backbone_fpn"]
            else:
                maps = model.get_image_features(images, return_dict=True).fpn_hidden_states
        return list(maps)

    return Side(run, counted(run), lambda maps: [x.float().cpu().numpy() for x in maps])


def ours(options: argparse.Namespace, folder: Path) -> Side:
    import jax

    from sam2_3dmed_jax.runtime.jaxpr_flops import flops
    from sam2_3dmed_jax.sam2.parameters import merge, split

    graphdef, weights = split(load(options, folder, options.size))
    images = jax.device_put(generated.slices(1, options.size, SEED))

    @jax.jit
    def encode(weights, images):
        return merge(graphdef, weights).encode_image(images)

    def run() -> list:
        return list(jax.block_until_ready(encode(weights, images)))

    return Side(run, flops(jax.make_jaxpr(encode)(weights, images)), lambda maps: [np.asarray(x) for x in maps])


def check(found: list, reference: list, options: argparse.Namespace) -> str:
    """Compare the feature maps, both sorted from stride 4 upwards."""
    errors = []
    for x, y in zip(sorted(found, key=lambda x: -x.shape[1]), reference, strict=True):
        # Meta's maps are channels-first, those of transformers tokens-first.
        y = y.transpose(0, 2, 3, 1) if y.ndim == 4 else y.transpose(1, 0, 2).reshape(x.shape)
        errors.append(compare.relative_error(x, y))
    assert max(errors) <= TOLERANCE[options.dtype], errors
    return f"features within {max(errors):.0e}"


WORK = {
    512: Work(lambda _: "image encoder, 512 px", {"float32": 0.65, "bfloat16": 0.95}, ours, theirs, check),
    1024: Work(lambda _: "image encoder, 1024 px", {"float32": 0.85, "bfloat16": 0.95}, ours, theirs, check),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="S, pixels; default: %(default)s")
    size = parser.parse_known_args()[0].size
    named = WORK.get(size, Work(lambda _: f"image encoder, {size} px", {}, ours, theirs, check))
    sys.exit(main(named, parser))
