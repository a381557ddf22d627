"""`deploy/Dockerfile`, by hadolint."""

import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

from manifests import DEPLOY, document

from helpers import ROOT

FILE = DEPLOY / "Dockerfile"


def hadolint(text):
    program = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([program, "-"], input=text, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_hadolint_has_nothing_to_say():
    assert hadolint(FILE.read_text()) == (0, "")
    code, told = hadolint(FILE.read_text().replace("==${VELO}", ""))
    assert code, told
    assert "DL3013" in told


def test_what_it_copies_is_there_or_is_built():
    sources = re.findall(r"^COPY (?!--from)(\S+)", FILE.read_text(), re.MULTILINE)
    assert sources == ["dist/*.whl", "deploy/app"]
    assert (DEPLOY / "app").is_dir()


def test_it_runs_as_the_user_of_the_pods():
    (user,) = re.findall(r"^USER (\d+):(\d+)$", FILE.read_text(), re.MULTILINE)
    context = document("StatefulSet")["spec"]["template"]["spec"]["securityContext"]
    assert tuple(map(int, user)) == (context["runAsUser"], context["runAsGroup"])


def test_the_extras_exist():
    (extras,) = re.findall(r"velo-stream\[(.*?)\]", FILE.read_text())
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= set(known["optional-dependencies"])
