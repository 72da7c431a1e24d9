#!/usr/bin/env bash
# Build the source distribution and the wheel, and try the wheel in fresh environments, far from the source tree: from
# `pip install` to a mask on a CT, by the name of weights. Needs `build` and `twine` (the extra `dev`).
# Arguments: the versions of Python; one that is absent is reported. The mask is made with the last one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
versions=()
for version in "$@"; do
  # With pyenv, `python3.13` starts only if PYENV_VERSION selects it.
  if PYENV_VERSION=$version "python$version" -c '' 2>/dev/null; then
    versions+=("$version")
  else
    echo "python$version is not on this machine: the wheel was not tried with it" >&2
  fi
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONNOUSERSITE=1 JAX_PLATFORMS=cpu
export SAM2_3DMED_CACHE="$scratch/cache"

# The wheel is built from the source distribution.
python -m build --outdir "$scratch/dist" . >"$scratch/build.log" 2>&1 || { cat "$scratch/build.log" >&2; exit 1; }
python -m twine check --strict "$scratch"/dist/*

try_wheel() {
  local version=$1 place="$scratch/$1"
  PYENV_VERSION=$version "python$version" -m venv "$place"
  cd "$place"
  bin/pip install --no-compile "$(echo "$scratch"/dist/*.whl)[hub]"
  export PATH="$place/bin:$PATH"
  sam2-3dmed --version
  sam2-3dmed --help >help.txt
  sam2-3dmed train demo --help >help.txt
  sam2-3dmed doctor
  [ "$version" = "${versions[-1]}" ] || return 0
  sam2-3dmed phantom data --cases 1 >phantom.txt 2>&1
  "$root/tools/try_first_mask.sh" "$root" data/imagesTr/*.nii.gz
}

declare -A tries
for version in "${versions[@]}"; do
  (try_wheel "$version" >"$scratch/$version.log" 2>&1) &
  tries[$version]=$!
done
failed=0
for version in "${!tries[@]}"; do
  wait "${tries[$version]}" || failed=1
  sed "s/^/$version: /" "$scratch/$version.log"
done
exit "$failed"
