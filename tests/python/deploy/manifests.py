"""The files of `deploy/`, and what their own tools say of them."""

import functools
import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from helpers import ROOT

__all__ = ["DEPLOY", "KUBERNETES", "check", "documents", "document", "keda_settings"]

DEPLOY = ROOT / "deploy"
# The oldest and the newest version that the manifests are for.
KUBERNETES = ("1.31", "1.37")
KEDA = "github.com/kedacore/keda/v2@v2.21.0"


def documents():
    """The documents of all manifests, but the one of kustomize."""
    found = []
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        if path.name != "kustomization.yaml":
            found += yaml.safe_load_all(path.read_text())
    return found


def document(kind):
    """The only document of a kind."""
    (found,) = [each for each in documents() if each["kind"] == kind]
    return found


def check(document, version):
    """Check a manifest against the schema of its kind, in which nothing else may be.

    Raises:
        jsonschema.ValidationError: When it does not fit.

    """
    if document["apiVersion"].startswith("keda.sh/"):
        jsonschema.validate(document, _keda_schemas()[document["kind"]])
    else:
        kubernetes_validate.validate(document, version, strict=True)


@functools.cache
def _keda():
    """The sources of KEDA, with the definitions of its resources; skips the test without them."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed, which fetches KEDA's definitions")
    done = subprocess.run(
        ["go", "mod", "download", "-json", KEDA], capture_output=True, text=True, cwd="/"
    )
    if done.returncode:
        pytest.skip(f"KEDA's definitions cannot be fetched: {done.stdout}{done.stderr}")
    return Path(json.loads(done.stdout)["Dir"])


@functools.cache
def _keda_schemas():
    found = {}
    for path in (_keda() / "config" / "crd" / "bases").glob("keda.sh_*.yaml"):
        spec = yaml.safe_load(path.read_text())["spec"]
        if "jobs" not in path.name:
            found[spec["names"]["kind"]] = _closed(spec["versions"][0]["schema"]["openAPIV3Schema"])
    return found


def _closed(schema):
    """The same schema, with which an object has no other fields."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    free = "x-kubernetes-preserve-unknown-fields" in schema
    if "properties" in schema and not free and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


def keda_settings():
    """The settings of KEDA's scaler for Kafka, each with where it may be and its values."""
    text = (_keda() / "pkg" / "scalers" / "kafka_scaler.go").read_text()
    found = {}
    for tag in re.findall(r'keda:"(name=[^"]*)"', text):
        parts = dict(part.split("=", 1) for part in tag.split(",") if "=" in part)
        places, values = parts["order"].split(";"), parts.get("enum", "").split(";")
        found[parts["name"]] = places, [value for value in values if value]
    return found
