"""Words completed as a shell asks for them, in a real bash."""

import shutil
import subprocess
import sys

import pytest

from bld.cli import COMMANDS, main
from bld.training.config import known_keys, preset_names


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-m", "bld", "completion", "bash"], capture_output=True, text=True, timeout=600, check=True
    )
    path = tmp_path_factory.mktemp("completion") / "bld"
    path.write_text(done.stdout, encoding="utf-8")
    return path


def completed(script, *words):
    """What bash offers for the last of the words."""
    line = " ".join(f"'{word}'" for word in words)
    code = f"""
source {script}
COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}
_bld_words bld '{words[-1]}' '{words[-2]}' 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=600, check=True)
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_commands_options_presets_and_settings_are_completed(script):
    assert completed(script, "bld", "tr") == {command for command in COMMANDS if command.startswith("tr")}
    assert completed(script, "bld", "train", "--bud") == {"--budget"}
    assert completed(script, "bld", "train", "--preset", "ce") == {"celebahq256", "celebahq1024"}
    assert set(preset_names()) <= completed(script, "bld", "train", "--preset", "")
    asked = completed(script, "bld", "train", "--out", "x", "prior.d")
    assert asked == {f"{key}=" for key in known_keys() if key.startswith("prior.d")}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_every_command_and_setting(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS) and all(f"{key}=" in script for key in known_keys())


def test_without_shtab_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "binary-latent-diffusion[completion]" in capsys.readouterr().err


def test_an_unknown_shell_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        main(["completion", "fish"])
    assert "bash" in capsys.readouterr().err
