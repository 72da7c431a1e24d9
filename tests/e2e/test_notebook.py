"""The notebook of the documentation runs in a kernel, with a small checkpoint under the name of published weights."""

from pathlib import Path

import pytest

from sam2_3dmed_jax import save_model
from tests.helpers.scans import small_model

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "first_segmentation.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_draws_masks_and_skips_absent_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    save_model(small_model(), tmp_path / "sam2.1_hiera_tiny")  # a folder has precedence over a download
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells), "clear the outputs of the notebook"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = [output for cell in cells for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "skipped: this runtime has no GPU\nskipped: this runtime has no TPU\n" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)
    for name in ("spleen.nii.gz", "spleen.json", "clicked.nii.gz"):
        assert (tmp_path / name).is_file()
