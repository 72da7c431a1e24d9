"""Doctor on machines with NVIDIA GPUs: a program `nvidia-smi` and devices of JAX that the tests make."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from sam2_3dmed_jax.commands import doctor
from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.runtime import nvidia
from sam2_3dmed_jax.sam2 import attention_choice, triton_self_check

H100 = "NVIDIA H100 80GB HBM3, 550.54.15, 81559 MiB, 9.0"
CPU = SimpleNamespace(device_kind="cpu", platform="cpu", id=0)
GPU = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", platform="gpu", id=0, compute_capability="9.0")


@pytest.fixture(autouse=True)
def no_gpu_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the GPUs, plugins and settings of the machine that runs the tests."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(nvidia, "_of_files", lambda root: [])
    monkeypatch.setattr(nvidia, "installed_plugins", dict)


def install_nvidia_smi(folder: Path, script: str) -> None:
    """Put a program `nvidia-smi` on the path of `no_gpu_of_this_machine`."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def on(monkeypatch: pytest.MonkeyPatch, *devices: Any, fault: str | None = None) -> None:
    """Let JAX report devices, and the self-check of the attention kernel a fault."""
    monkeypatch.setattr(jax, "devices", lambda *_: list(devices))
    monkeypatch.setattr(jax, "local_devices", lambda *_, **__: list(devices))
    monkeypatch.setattr(jax, "default_backend", lambda: devices[0].platform)
    monkeypatch.setattr(triton_self_check, "kernel_fault", lambda _: fault)
    monkeypatch.setattr(attention_choice, "_kernel_fault", attention_choice._kernel_fault.__wrapped__)


def test_a_gpu_that_jax_uses_is_described_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install_nvidia_smi(tmp_path, f"echo '{H100}'; echo '{H100}'")
    on(monkeypatch, GPU)
    monkeypatch.setattr(nvidia, "installed_plugins", lambda: {"jax-cuda12-plugin": "0.10.2"})
    found = doctor.examine()
    gpu = "GPU: NVIDIA H100 80GB HBM3, driver 550.54.15, 81559 MiB, compute capability 9.0"
    assert found.facts.count(gpu) == 2 and not found.warnings and not found.problems
    assert "CUDA plugin of JAX: jax-cuda12-plugin 0.10.2" in found.facts
    assert any(fact.startswith("prediction computes in bfloat16") for fact in found.facts)


@pytest.mark.parametrize(
    ("capability", "fault", "in_bfloat16"),
    [
        ("9.0", None, "a fused kernel (triton) (the GPU computes in bfloat16"),
        ("7.0", None, "plain XLA (wide) (the GPU's compute capability 7.0 is below 8.0)"),
        ("8.6", "the output is wrong", "plain XLA (wide) (the kernel failed its self-check (the output is wrong))"),
    ],
)
def test_the_attention_that_runs_on_a_gpu_has_its_reason(
    capability: str, fault: str | None, in_bfloat16: str, monkeypatch: pytest.MonkeyPatch
):
    device = SimpleNamespace(device_kind="a GPU", platform="gpu", id=0, compute_capability=capability)
    on(monkeypatch, device, fault=fault)
    found = doctor.examine()
    assert f"compute capability: {capability}" in found.facts
    assert any(fact.startswith(f"attention in bfloat16: {in_bfloat16}") for fact in found.facts)
    assert any(fact.startswith("attention in float32: plain XLA (wide) (the") for fact in found.facts)
    assert len(found.warnings) == (fault is not None) and not found.problems


def test_a_gpu_without_a_plugin_is_a_warning_with_the_fix_and_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    install_nvidia_smi(tmp_path, f"echo '{H100}'")
    on(monkeypatch, CPU)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("warning: NVIDIA H100 80GB HBM3 is present, but JAX runs on cpu: pip install ")
    assert "'sam2-3dmed-jax[cuda12]'" in lines[-2] and lines[-1] == "nothing else is wrong"


def test_a_plugin_that_did_not_start_names_the_drivers_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install_nvidia_smi(tmp_path, f"echo '{H100}'")
    on(monkeypatch, CPU)
    monkeypatch.setattr(nvidia, "installed_plugins", lambda: {"jax-cuda13-plugin": "0.10.2"})
    (warning,) = doctor.examine().warnings
    assert "jax-cuda13-plugin is installed but did not start" in warning and "driver 525" in warning
    assert len(f"warning: {warning}") <= 300


@pytest.mark.parametrize(("platforms", "named"), [("cpu", "JAX_PLATFORMS=cpu asks for that"), ("cuda,cpu", "pip")])
def test_a_variable_that_asks_for_the_cpu_is_named(platforms, named, tmp_path, monkeypatch: pytest.MonkeyPatch):
    install_nvidia_smi(tmp_path, f"echo '{H100}'")
    on(monkeypatch, CPU)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert named in doctor.examine().warnings[0]


def test_an_nvidia_smi_without_compute_capabilities_is_asked_again(tmp_path: Path):
    script = "case \"$1\" in *compute_cap*) exit 2;; esac; echo 'Tesla V100, 460.27.04, [N/A]'"
    install_nvidia_smi(tmp_path, script)
    assert nvidia.find_gpus() == [nvidia.NvidiaGpu("Tesla V100", "460.27.04")]


@pytest.mark.parametrize("script", ["exit 9", "exec /bin/sleep 60", "printf '\\377\\n'", ":"])
def test_an_nvidia_smi_that_fails_hangs_or_prints_nonsense_is_not_fatal(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    install_nvidia_smi(tmp_path, script)
    monkeypatch.setattr(nvidia, "_SECONDS", 0.5)
    on(monkeypatch, CPU)
    assert not doctor.examine().problems


def test_files_of_the_driver_name_gpus_where_the_program_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    folder = tmp_path / "proc" / "driver" / "nvidia"
    (folder / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (folder / "gpus" / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA L4\nIRQ:   100\n")
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560.35.03  Release Build\nGCC version: 12\n"
    (folder / "version").write_text(version)
    assert nvidia.find_gpus(tmp_path) == [nvidia.NvidiaGpu("NVIDIA L4", "560.35.03")]


def test_a_device_file_alone_is_a_gpu_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert nvidia.find_gpus(tmp_path) == []
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert [str(gpu) for gpu in nvidia.find_gpus(tmp_path)] == ["an NVIDIA GPU"]
