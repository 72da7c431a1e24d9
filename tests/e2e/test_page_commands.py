"""The commands of documentation pages run, in order, with small files and a small model under the names they use.

Left out are `convert`, `plan`, `demo` and `serve`, which have their own tests. A sweep is checked and not computed. A
train step is traced and not compiled, which takes up to a minute per experiment; everything else of a training run is
done.
"""

import contextlib
import json
import re
import shlex
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.paper.export_nnunet import Export, export
from sam2_3dmed_jax import phantom, save_model
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.hub import catalog
from sam2_3dmed_jax.hub.catalog import CATALOG, WeightsFile
from sam2_3dmed_jax.phantom import write_phantom_dataset
from sam2_3dmed_jax.training import setup
from sam2_3dmed_jax.training.step import make_step
from sam2_3dmed_jax.volume.io import write_nifti
from tests.helpers.dicom_files import write_series
from tests.helpers.local_hub import local_hub
from tests.helpers.scans import small_model
from weights_conversion.convert import convert_checkpoint

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = {"convert", "plan", "demo", "serve"}

FINE_TUNE = "docs/tutorials/fine-tune.md"  # makes files that other pages expect: it runs in the fixture `files`
# The files and folders that a page expects, and one that its last command writes.
PAGES = {
    "README.md": ("CT.nii.gz", "scores/report.html"),
    "docs/tutorials/first-segmentation.md": ("CT.nii.gz", "segmentation.nii.gz"),
    "docs/tutorials/evaluate.md": ("data/phantom runs/demo nnunet/crossval", "scores/all/comparison.csv"),
    "docs/how-to/automatic-start.md": (
        "CT.nii.gz runs/demo organs.nii.gz dataset.json totalsegmentator earlier.nii.gz follow_ups.csv",
        "follow_ups/CT.json",
    ),
    "docs/how-to/read-a-voxel.md": ("CT.nii.gz", "segmentation.json"),
    "docs/how-to/gpu.md": ("CT.nii.gz", "spleen.json"),
    "docs/how-to/check.md": ("CT.nii.gz checkpoints/tiny", "planes.png"),
    "docs/how-to/zoom.md": ("CT.nii.gz", "scores/zoom/comparison.csv"),
    "docs/how-to/mr-and-pet.md": ("MR.nii.gz", "clips.png"),
    "docs/how-to/images.md": ("runs/demo series", "objects.csv"),
    "docs/how-to/many-volumes.md": ("runs/demo cases.csv CT.nii.gz MR.nii.gz", "pictures/CT_planes.png"),
    "docs/how-to/datasets.md": ("Task09_Spleen.tar", "clips.png"),
    "docs/how-to/from-nnunet.md": ("nnUNet_raw nnUNet_preprocessed nnunet/crossval", "scores/both/comparison.csv"),
    "docs/how-to/training.md": ("data/spleen data/prepared runs/demo", "runs/cached/final/config.json"),
    "docs/how-to/fine-tune-10-cases.md": ("", "scores/lora/report.html"),
    "docs/how-to/evaluate-files.md": ("data/phantom runs/demo labels others", "scores/others/lesions.csv"),
    "docs/how-to/clicks.md": ("data/phantom runs/demo labels method", "clicks/method/interactions.csv"),
    "docs/how-to/sweeps.md": ("data/phantom runs/demo runs/fold0 runs/fold1 runs/fold2", ""),  # writes nothing
    "docs/how-to/submission.md": (
        "Task09_Spleen runs/spleen nnunet/imagesTs_predicted",
        "submission/Task09_Spleen.manifest.json",
    ),
    "docs/how-to/weights.md": ("CT.nii.gz", "segmentation.nii.gz"),
    "docs/how-to/export.md": ("Task09_Spleen runs/spleen", "published/spleen-onnx/run.py"),
    "docs/explanation/memory-selection.md": ("runs/demo CT.nii.gz", "segmentation.json"),
}
NOT_RUN = {  # pages with commands that do not run here, with the reason
    "docs/explanation/gpu.md": "has only `plan`",
    "docs/gallery.md": "tools/make_gallery.py runs it, with the demo and a patient's CT",
    "docs/how-to/convert.md": "needs PyTorch; tests/weights_conversion/test_torch_files.py runs it",
    "docs/how-to/plan.md": "has only `plan`, which tests/plan tests",
    "docs/how-to/serve.md": "has only `serve`, which tests/server tests",
    "docs/how-to/viewers.md": "has only `serve`",
    "docs/how-to/which-preset.md": "has only `convert` and `plan`",
    "experiments/README.md": "has only `plan`",
    "experiments/launch/README.md": "needs clusters; tests/distributed/test_launch_recipes.py checks the words",
    "experiments/paper/README.md": "needs the Decathlon; tests/experiments/paper/test_readme.py checks the words",
}
BRIEF = "--training.steps 1 --training.batch_size 1 --training.images_every 0"
NANO = f"{BRIEF} --data.slices 2 --model.image_size 64 --model.srpp False --model.bd False"
SMALL = {  # words that make a command cheap
    "prepare": "--workers 1",  # in this process
    "sweep": "--dry-run",
    "train demo": NANO,
    "train spleen": f"{NANO} --model.preset nano --model.compute_dtype float32 --data.split.inner_fraction 0",
    "evaluate runs/demo/final data/phantom --protocol interactive": "--interactions 1",
    "train unet_demo": f"{BRIEF} --model.patch 16 16 16 --model.blocks 1 1 1",
}


def traced_step(*settings: Any) -> Any:
    """Return a train step that is traced, and returns the state that it gets."""
    step = make_step(*settings)
    return lambda state, *inputs: (state, jax.tree.map(jnp.ones_like, jax.eval_shape(step, state, *inputs)[1]))


def few_small_phantoms(out: str, cases: int, *rest: Any, **settings: Any) -> Path:
    """Write at most five cases, one for each fold."""
    return write_phantom_dataset(out, min(cases, 5), *rest, **settings, matrix=32)


@pytest.fixture(scope="module")
def small_parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Small phantoms, uncompiled steps, and a hub with `nano` under the names of weights, whose hashes are ignored."""
    folder = tmp_path_factory.mktemp("hub")
    save_model(small_model(), folder / "nano")
    for name in ("tiny", "large"):
        convert_checkpoint(folder / "nano", folder / "hub" / "facebook" / f"sam2.1-hiera-{name}", to="transformers")
    (folder / "hub" / "lab" / "our-model" / "weights").mkdir(parents=True)
    convert_checkpoint(folder / "nano", folder / "hub" / "lab" / "our-model" / "weights" / "spleen.safetensors")
    without_hashes = [
        replace(weights, preset=None, files=tuple(WeightsFile(file.name) for file in weights.files))
        for weights in CATALOG
    ]
    with pytest.MonkeyPatch.context() as patch, local_hub(folder / "hub", folder, patch) as hub:
        hub.tags = ("v2",)
        patch.setattr(catalog, "CATALOG", tuple(without_hashes))
        patch.setattr(phantom, "write_phantom_dataset", few_small_phantoms)
        patch.setattr(setup, "make_step", traced_step)
        yield


@pytest.fixture(scope="module")
def files(small_parts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files that pages expect: scans, and what a tutorial makes of phantoms, also under other names."""
    folder = tmp_path_factory.mktemp("pages")
    noise = np.random.default_rng(0).normal(40, 100, (18, 12, 10)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    for name in ("CT.nii.gz", "MR.nii.gz"):
        write_nifti(folder / name, noise.astype(np.int16), np.diag([-0.8, -0.8, 3.0, 1.0]))
    write_series(folder / "series", array=(noise.T + 1024).astype(np.int16))
    (folder / "cases.csv").write_text('image,point\nMR.nii.gz,"60,45,30"\nCT.nii.gz,"60,45,30;10,10,10,0"\n')

    write_organs(folder)

    run_page(FINE_TUNE, folder)
    assert (folder / "overlay.png").exists()
    for name, source in {
        "data/spleen": "data/prepared",
        "Task09_Spleen": "data/phantom",
        "Task09_Spleen/imagesTs": "data/phantom/imagesTr",
        "nnunet/crossval": "data/phantom/labelsTr",
        "nnunet/imagesTs_predicted": "data/phantom/labelsTr",
        "runs/spleen": "runs/demo",
        "checkpoints/tiny": "runs/demo/final",
        **{f"runs/fold{fold}/final": "runs/demo/final" for fold in range(3)},
    }.items():
        shutil.copytree(folder / source, folder / name, dirs_exist_ok=True)
    record = json.loads((folder / "Task09_Spleen" / "dataset.json").read_text())
    record["test"] = [case["image"].replace("imagesTr", "imagesTs") for case in record["training"]]
    (folder / "Task09_Spleen" / "dataset.json").write_text(json.dumps(record))
    with tarfile.open(folder / "Task09_Spleen.tar", "w") as archive:
        archive.add(folder / "data" / "phantom", "Task09_Spleen")
    raw = export(Export(str(folder / "data" / "phantom"), str(folder / "nnUNet_raw"), 9, "Spleen"))
    (folder / "nnUNet_preprocessed" / raw.name).mkdir(parents=True)
    shutil.copy(raw / "splits_final.json", folder / "nnUNet_preprocessed" / raw.name)

    reference = np.zeros((32, 32, 16), np.uint8)
    reference[8:24, 8:24, 4:12] = 1
    reference[12:16, 12:16, 6:8] = 2
    maps = {"labels": reference, "others": np.array([0, 7, 11], np.uint8)[reference]}
    maps |= {"method/step_0": np.minimum(reference, 1), "method/step_1": reference}
    for name, labels in maps.items():
        write_nifti(folder / name / "pancreas_001.nii.gz", labels, np.diag([-0.8, -0.8, 3.0, 1.0]))
    return folder


def write_organs(folder: Path) -> None:
    """Write label maps of CT.nii.gz: of two methods, and of an earlier scan with thinner slices."""
    organs, affine = np.zeros((72, 48, 40), np.uint8), np.diag([-0.8, -0.8, 3.0, 1.0])
    names = ("liver", "spleen", "kidney_left", "kidney_right")
    for value, start in enumerate((4, 20, 36, 52), 1):
        organs[start : start + 12, 8:30, 4 * value : 4 * value + 10] = value
        write_nifti(
            folder / "totalsegmentator" / f"{names[value - 1]}.nii.gz", (organs == value).astype(np.uint8), affine
        )
    organs[organs > 2] = 0  # two objects in each command, which then share most of their compiled programs
    write_nifti(folder / "organs.nii.gz", organs, affine)
    write_nifti(folder / "earlier.nii.gz", organs.repeat(2, 2), np.diag([-0.8, -0.8, 1.5, 1.0]))
    labels = {"background": 0, **{name: value for value, name in enumerate(names, 1)}}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    (folder / "follow_ups.csv").write_text("image,prompts_from\nCT.nii.gz,earlier.nii.gz\n")


def lines(page: str, language: str) -> list[str]:
    """Return the lines of a page's code blocks that have our command, without what precedes `&&`.

    Blocks may be indented. `language` is a regex on the word after the opening fence.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    split = [line.rpartition("&& ")[2].strip() for block in blocks for line in block.splitlines()]
    return [line for line in split if line.startswith("sam2-3dmed ")]


def run_page(page: str, folder: Path) -> None:
    """Run the commands of a page in a folder."""
    with contextlib.chdir(folder):
        for line in lines(page, "sh"):
            words = shlex.split(line)[1:]
            small = next((SMALL[start] for n in (1, 2, 5) if (start := " ".join(words[:n])) in SMALL), "")
            if "--data.slices_schedule" in words:  # clips that grow to the two slices of `small`
                small += " --data.slices_schedule 0 2"
            assert words[0] in LEFT_OUT or main(words + small.split()) == 0, line


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_in_order(page: str, files: Path, tmp_path: Path):
    expected, written = PAGES[page]
    for name in expected.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (files / name).is_dir() else shutil.copy)(files / name, tmp_path / name)
    run_page(page, tmp_path)
    assert (tmp_path / written).exists()


def test_every_page_with_commands_runs_or_has_a_reason_not_to():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md")]
    commands = {page.relative_to(ROOT).as_posix(): lines(str(page), "[^`\n]*") for page in pages}
    assert {page for page, found in commands.items() if found} == PAGES.keys() | NOT_RUN.keys() | {FINE_TUNE}
    for page in (*PAGES, FINE_TUNE):
        assert commands[page] == lines(page, "sh")  # a block of another language would not run
