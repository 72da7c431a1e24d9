#!/bin/sh
# The challenge starts a container in this folder with `sh predict.sh`, with one image in inputs/, and reads outputs/.
set -eu
exec python -m experiments.segfm3d predict inputs outputs --model model
