#!/usr/bin/env bash
# From an installed wheel to a mask on a CT, by the name of weights, from a hub on this machine. Called by try_wheel.sh
# in a fresh environment with the extra `hub`. Arguments: the source tree, and a CT to use where no real one is present.
#
# The hub has random weights. They cannot have the hash that the table pins for `sam2.1_hiera_tiny`, so another revision
# of its repository is used, for which the table pins no hash.
set -euo pipefail
root=$1 ct=${SAM2_3DMED_REALDATA:+$SAM2_3DMED_REALDATA/abdomen/ct.nii.gz}
[ -e "${ct:-}" ] || ct=$2
model=hf://facebook/sam2.1-hiera-tiny@main

# What Meta publishes in this repository, at 128 pixels for speed.
python -c 'from sam2_3dmed_jax import new_model, save_model as save; save(new_model("sam2.1_hiera_tiny", 128), "random")'
sam2-3dmed convert random hub/facebook/sam2.1-hiera-tiny --to transformers
(cd "$root" && exec python -m tests.helpers.hub_server "$OLDPWD/hub") >endpoint.txt &
trap 'kill %%' EXIT
until [ -s endpoint.txt ]; do sleep 0.1; done
HF_ENDPOINT=$(cat endpoint.txt) HF_HOME=$PWD/huggingface
export HF_ENDPOINT HF_HOME

cp "$ct" CT.nii.gz
point=$(python -c 'import nibabel as n; print(*(size // 2 for size in n.load("CT.nii.gz").shape), sep=",")')
sam2-3dmed predict CT.nii.gz --model "$model" --point "$point" --out mask.nii.gz --overlay mask.png 2>predict.txt ||
  { cat predict.txt >&2; exit 1; }
python - "$model" "$point" <<'PYTHON'
import json
import sys

import nibabel
from sam2_3dmed_jax import segment

model, point = sys.argv[1], [int(number) for number in sys.argv[2].split(",")]
mask = segment("CT.nii.gz", points=[point], model=model, progress=False)
written = nibabel.load("mask.nii.gz")
assert (mask.get_fdata() == written.get_fdata()).all() and (mask.affine == written.affine).all()
record = json.load(open("mask.json"))
assert open("mask.png", "rb").read(4) == b"\x89PNG" and record["objects"][0]["volume_ml"] > 0, record
print("predict and segment: the same", int((mask.get_fdata() > 0).sum()), "voxels; mask.png, mask.json")
PYTHON
