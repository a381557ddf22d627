"""`deploy/systemd/velo@.service`, by systemd's own tools."""

import shutil
import subprocess

import pytest
from manifests import DEPLOY

UNIT = DEPLOY / "systemd" / "velo@.service"
# The exposure that `systemd-analyze security` may find, in tenths; 100 is the most.
EXPOSURE = 20


@pytest.fixture
def analyze(tmp_path):
    """Run a command of systemd-analyze on an instance of the unit."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: Debian's package systemd has it")

    def run(*command, old="", new=""):
        # The check looks for the program, which is not there.
        text = UNIT.read_text().replace("/opt/velo/bin/velo", "/bin/true")
        assert old in text
        instance = tmp_path / "velo@fraud.service"
        instance.write_text(text.replace(old, new))
        done = subprocess.run(
            ["systemd-analyze", *command, instance], capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_the_unit_is_well_formed(analyze):
    assert analyze("verify", "--man=no") == (0, "")


def test_a_misspelled_setting_is_found(analyze):
    _, told = analyze("verify", "--man=no", old="UMask=", new="Umask=")
    assert "Umask" in told


def test_the_service_is_exposed_little(analyze):
    security = ("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}")
    code, told = analyze(*security)
    assert code == 0, told
    code, _ = analyze(*security, old="CapabilityBoundingSet=\n", new="")
    assert code != 0
