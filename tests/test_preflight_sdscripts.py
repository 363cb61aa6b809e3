"""Before sd-scripts is started: the checkout, what its script knows, what it would refuse."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

import fake_sd_scripts as fake
import headers
from limner import cli, launch, settings
from limner.config import Config
from limner.errors import Finding, UserError
from limner.preflight import examine
from limner.runs import home
from limner.sdscripts import assemble
from limner.sdscripts.trust import require_trust


def look(config: Config) -> dict[str, Finding]:
    findings, _ = examine(config, fake.CPU)
    for f in findings:
        assert f.field and f.message.endswith(".") and (f.remedy or f.severity != "error"), f
    return {f.field: f for f in reversed(findings) if f.severity != "note"}


def test_a_good_configuration_has_no_findings_and_nothing_is_written(tmp_path: Path) -> None:
    assert look(fake.config(tmp_path)) == {}
    assert not (home() / "runs").exists() and not (tmp_path / "sd-scripts" / "seen.json").exists()


CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("launch.sd_scripts", "error", "no folder is given", {"launch": {"sd_scripts": None}}),
    ("launch.sd_scripts", "error", "is no checkout", {"launch": {"sd_scripts": "/no/such/folder"}}),
    ("launch.python", "error", "does not exist", {"launch": {"python": "/no/such/python"}}),
    ("output.save_every_steps", "warning", "cannot be resumed", {"output": {"save_every_steps": None}}),
    ("launch.num_processes", "error", "in one process on a CPU", {"launch": {"num_processes": 2}}),
    ("launch.sd_scripts", "error", "has no sdxl_train", {}),
]


@pytest.mark.parametrize(("field", "severity", "words", "sections"), CASES)
def test_each_fault_is_said_with_its_field(
    tmp_path: Path, field: str, severity: str, words: str, sections: dict[str, Any]
) -> None:
    if not sections:
        sections = {"model": {"base": str(fake.base_model(tmp_path, "sdxl"))}}
    found = look(fake.config(tmp_path, **sections))
    assert found[field].severity == severity and words in found[field].message


def test_what_this_checkout_does_not_know_is_said_of_the_option_that_wants_it(tmp_path: Path) -> None:
    """The fake script knows no noise_offset, as an old one may not know a new flag."""
    found = look(fake.config(tmp_path, objective={"noise_offset": 0.05}))
    said = "sets noise_offset = 0.05, which train_network.py of this checkout does not know."
    assert list(found) == ["objective.noise_offset"] and found["objective.noise_offset"].message == said


def test_a_value_of_the_wrong_kind_is_said(tmp_path: Path) -> None:
    config = fake.config(tmp_path)
    path = tmp_path / "sd-scripts" / "library" / "train_util.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('choices=[None, "float", "fp16", "bf16"]', 'choices=[None, "float"]'), encoding="utf-8")
    assert "save_precision = 'fp16'" in look(config)["output.dtype"].message


def test_a_rule_that_is_broken_is_said_of_its_option(tmp_path: Path) -> None:
    """Limner itself needs no more than 8; sd-scripts asserts 64 for Stable Diffusion 1, minutes later."""
    found = look(fake.config(tmp_path, data={"bucket_step_px": 32}))
    assert found["data.bucket_step_px"].severity == "error"
    assert found["data.bucket_step_px"].message == "bucket_reso_steps 32 is no multiple of 64."


def test_an_old_version_is_warned_of(tmp_path: Path) -> None:
    config = fake.config(tmp_path)
    (tmp_path / "sd-scripts" / "README.md").write_text("Version 0.7.0", encoding="utf-8")
    assert "version 0.7.0" in look(config)["launch.sd_scripts"].message


def test_a_python_without_accelerate(tmp_path: Path) -> None:
    config = fake.config(tmp_path)
    python = tmp_path / "sd-scripts" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("", encoding="utf-8")
    (tmp_path / "sd-scripts" / "venv" / "pyvenv.cfg").write_text("", encoding="utf-8")
    assert "has no accelerate" in look(config)["launch.python"].message


def test_packages_are_looked_for_where_sd_scripts_would(tmp_path: Path) -> None:
    config = fake.config(tmp_path, optimizer={"kind": "adamw_8bit"})
    packages = tmp_path / "sd-scripts" / "venv" / "lib" / "python3.10" / "site-packages"
    for name in ("accelerate", "bitsandbytes"):
        (packages / name).mkdir(parents=True)
    (tmp_path / "sd-scripts" / "venv" / "bin").mkdir()
    (tmp_path / "sd-scripts" / "venv" / "bin" / "python").write_text("", encoding="utf-8")
    (tmp_path / "sd-scripts" / "venv" / "pyvenv.cfg").write_text("", encoding="utf-8")
    assert look(config) == {}
    (packages / "bitsandbytes").rmdir()
    assert "needs bitsandbytes" in look(config)["optimizer.kind"].message


def test_a_device_that_limners_torch_does_not_see_may_be_there(tmp_path: Path) -> None:
    found = look(fake.config(tmp_path, launch={"device": "cuda"}, train={"precision": "bf16"}))
    assert found["launch.device"].severity == "warning"


def test_paths_are_told_from_the_root_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sd-scripts runs in the folder of its checkout, not where the configuration was written."""
    fake.config(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "style.safetensors").write_bytes(b"")
    config = fake.config(
        tmp_path, data={"path": "pictures"}, output={"path": "out"}, launch={"sd_scripts": "sd-scripts"},
        model={"base": "sd1.safetensors", "vae": "vae.safetensors", "merge": ["style.safetensors @ 0.5"]},
    )  # fmt: skip
    whole = assemble.absolute(config)
    assert (whole.data.path, whole.output.path, whole.model.vae) == tuple(
        tmp_path / name for name in ("pictures", "out", "vae.safetensors")
    )
    assert whole.model.merge == (f"{tmp_path}/style.safetensors @ 0.5",)
    assert whole.train == config.train and whole.adapter == config.adapter
    plain = fake.config(
        tmp_path, data={"path": "pictures"}, model={"base": "sd1.safetensors"}, launch={"sd_scripts": "sd-scripts"}
    )
    job = assemble.assemble(plain, Path("runs"), fake.CPU)
    assert job.arguments["pretrained_model_name_or_path"] == str(tmp_path / "sd1.safetensors")
    assert job.arguments["output_dir"] == str(tmp_path / "runs" / "sd-scripts" / "output-from-0")
    assert f'image_dir = "{tmp_path}/pictures"' in "".join(job.texts.values())
    assert job.words[-1] == f"--config_file={tmp_path}/runs/sd-scripts/config.toml" and job.checkout == tmp_path / "sd-scripts"


def test_parts_that_lie_beside_the_model_are_named(tmp_path: Path) -> None:
    config = fake.config(tmp_path, model={"base": str(fake.base_model(tmp_path, "flux"))})
    parts = headers.parts_beside(tmp_path, 16)
    shutil.copy(tmp_path / "sd-scripts" / "train_network.py", tmp_path / "sd-scripts" / "flux_train_network.py")
    told = assemble.assemble(config, tmp_path / "run", fake.CPU).arguments
    assert {name: told[name] for name in ("ae", "clip_l", "t5xxl")} == {
        "ae": str(parts["vae"]), "clip_l": str(parts["clip_l"]), "t5xxl": str(parts["t5"]),
    }  # fmt: skip


def test_the_pocket_model_is_limners_own(tmp_path: Path) -> None:
    assert "Limner's own" in look(fake.config(tmp_path, model={"base": "pocket"}))["model.base"].message


def test_the_command_is_shown_as_it_will_be_run(tmp_path: Path, home: Path) -> None:
    config = fake.config(tmp_path)
    line = assemble.preview(config, home / "runs" / "RUN", fake.CPU)
    checkout = tmp_path / "sd-scripts"
    assert line.startswith(f"cd {checkout} && ") and f" {checkout}/train_network.py " in line
    assert line.endswith(f"--config_file={home}/runs/RUN/sd-scripts/config.toml")
    assert launch.argv(config, home / "runs" / "RUN", "cpu")[1:] == ["-m", "limner.sdscripts", str(home / "runs" / "RUN")]
    # where it cannot be told, the process that will say why
    assert "-m limner.sdscripts" in assemble.preview(fake.config(tmp_path, data={"path": "/none"}), home / "RUN", fake.CPU)


def test_programs_run_only_where_the_user_said_so(tmp_path: Path) -> None:
    config = fake.config(tmp_path, launch={"python": "/usr/bin/env"})
    assert "is not a program that you trust" in look(config)["launch.python"].message
    settings.write(home(), settings.Settings())
    said = look(config)["launch.sd_scripts"]
    assert "is not a program that you trust" in said.message and f"limner config trust {tmp_path}" in said.remedy
    with pytest.raises(UserError):
        require_trust(config.launch)


def test_trusting_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = fake.config(tmp_path)
    settings.write(home(), settings.Settings(theme="dark"))
    cli.app(["config", "trust", str(tmp_path / "sd-scripts")], result_action="return_value")
    assert settings.read(home())[0] == settings.Settings(theme="dark", programs=(tmp_path / "sd-scripts",))
    require_trust(config.launch)
    other = tmp_path / "other"
    other.symlink_to(tmp_path)
    assert settings.is_trusted(home(), other / "sd-scripts") and not settings.is_trusted(home(), tmp_path)


def test_trust_ends_where_a_path_goes_up_or_a_link_stands_elsewhere(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine" / "sd-scripts", tmp_path / "other"
    (mine / "venv" / "bin").mkdir(parents=True)
    other.mkdir()
    settings.write(home(), settings.Settings(programs=(mine,)))
    assert not settings.is_trusted(home(), mine / ".." / ".." / "other")
    assert not settings.is_trusted(home(), mine / "..")
    assert settings.is_trusted(home(), other / ".." / "mine" / "sd-scripts")
    # the Python of what lies around a checkout is run too, so a link to it from elsewhere is another thing
    (other / "sd-scripts").symlink_to(mine)
    assert not settings.is_trusted(home(), other / "sd-scripts")
    settings.write(home(), settings.Settings(programs=(other / "sd-scripts",)))
    assert settings.is_trusted(home(), other / "sd-scripts") and settings.is_trusted(home(), mine)
    # what is linked inside a trusted folder is the user's own choice, as a virtual environment's Python
    (mine / "venv" / "bin" / "python").symlink_to("/usr/bin/env")
    assert settings.is_trusted(home(), other / "sd-scripts" / "venv" / "bin" / "python")


def test_pickled_files_are_programs_to_sd_scripts(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    start = tmp_path / "start.pt"
    with zipfile.ZipFile(start, "w") as file:
        file.writestr("start/data.pkl", pickle.dumps({"lora_unet.alpha": eval}))
    config = fake.config(folder, adapter={"start": str(start)})
    with pytest.raises(UserError) as caught:
        assemble.assemble(config, home() / "runs" / "RUN", fake.CPU)
    assert {f.field for f in caught.value.findings} == {"adapter.start"} and "eval" in str(caught.value)
    settings.write(home(), settings.Settings(programs=(tmp_path,)))
    assert assemble.assemble(config, home() / "runs" / "RUN", fake.CPU).arguments["network_weights"] == str(start)
