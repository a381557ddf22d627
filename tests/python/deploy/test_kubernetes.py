"""The manifests of `deploy/kubernetes`: against the schemas of their kinds, and with each other."""

import copy
import re
from urllib.parse import parse_qs, urlsplit

import jsonschema
import pytest
import yaml
from manifests import DEPLOY, KUBERNETES, check, document, documents, keda_settings


def pod():
    return document("StatefulSet")["spec"]["template"]["spec"]


def container():
    (found,) = pod()["containers"]
    return found


def option(name):
    args = container()["args"]
    return args[args.index(name) + 1]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("manifest", documents(), ids=lambda each: each["kind"])
def test_each_manifest_fits_its_schema(manifest, version):
    check(manifest, version)
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["mispelled"] = 1
    with pytest.raises(jsonschema.ValidationError, match="mispelled"):
        check(wrong, version)


def test_a_misspelled_field_deep_below_is_found():
    wrong = copy.deepcopy(document("StatefulSet"))
    (one,) = wrong["spec"]["template"]["spec"]["containers"]
    one["readinessProbe"]["httpGet"]["paht"] = "/ready"
    with pytest.raises(jsonschema.ValidationError, match="paht"):
        check(wrong, KUBERNETES[-1])
    wrong = copy.deepcopy(document("ScaledObject"))
    wrong["spec"]["triggers"][0]["metdata"] = {}
    with pytest.raises(jsonschema.ValidationError, match="metdata"):
        check(wrong, KUBERNETES[-1])


def test_the_settings_of_the_trigger_are_those_of_its_scaler():
    known = keda_settings()
    (trigger,) = document("ScaledObject")["spec"]["triggers"]
    assert trigger["type"] == "kafka"
    for name, value in trigger["metadata"].items():
        places, values = known[name]
        assert "triggerMetadata" in places
        assert not values or value in values
    for secret in document("TriggerAuthentication")["spec"]["secretTargetRef"]:
        assert "authParams" in known[secret["parameter"]][0]


def test_kustomize_has_all_manifests():
    folder = DEPLOY / "kubernetes"
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(kustomization["resources"]) == files
    (image,) = kustomization["images"]
    assert container()["image"].startswith(image["name"] + ":")


def test_they_are_about_the_same_pods():
    labels = document("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        document("StatefulSet")["spec"]["selector"]["matchLabels"],
        document("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        document("Service")["spec"]["selector"],
    ):
        assert selector.items() <= labels.items()
    service, pods = document("Service"), document("StatefulSet")
    assert pods["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    target = document("ScaledObject")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("StatefulSet", pods["metadata"]["name"])
    # KEDA sets it, and another `apply` must not set it back.
    assert "replicas" not in pods["spec"]


def test_pods_scale_by_the_lag_of_their_own_group():
    url = urlsplit(option("--input"))
    (trigger,) = document("ScaledObject")["spec"]["triggers"]
    assert parse_qs(url.query)["group"] == [trigger["metadata"]["consumerGroup"]]
    assert url.path.strip("/") == trigger["metadata"]["topic"]
    assert url.netloc.rpartition("@")[2] == trigger["metadata"]["bootstrapServers"]


def test_a_member_of_the_group_has_the_name_of_its_pod():
    assert parse_qs(urlsplit(option("--input")).query)["instance_id"] == ["$(POD_NAME)"]
    names = {each["name"]: each.get("valueFrom") for each in container()["env"]}
    assert names["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_secrets_are_in_no_argument():
    secret = {
        each["name"] for each in container()["env"] if "secretKeyRef" in each.get("valueFrom", {})
    }
    assert secret == {"KAFKA_USER", "KAFKA_PASSWORD"}
    assert [list(each) for each in container()["envFrom"]] == [["secretRef"]]
    used = set(re.findall(r"\$\((\w+)\)", " ".join(container()["args"])))
    assert used == {"POD_NAME", "KAFKA_USER"}
    assert used <= {each["name"] for each in container()["env"]}


def test_a_pod_has_more_time_to_end_than_the_run_takes():
    assert pod()["terminationGracePeriodSeconds"] >= float(option("--drain")) + 15


def test_probes_ask_the_port_of_the_figures():
    _, _, port = option("--metrics").rpartition(":")
    (named,) = container()["ports"]
    assert named == {"name": "metrics", "containerPort": int(port)}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container()[probe]["httpGet"]["port"] == "metrics"
    assert document("Service")["spec"]["ports"][0]["targetPort"] == "metrics"


def test_what_is_written_and_read_beside_the_image_is_mounted():
    mounts = {each["name"]: each for each in container()["volumeMounts"]}
    assert {each["name"] for each in pod()["volumes"]} == set(mounts)
    values = {each["name"]: each["value"] for each in container()["env"] if "value" in each}
    assert values["VELO_CHECKPOINT_CACHE"] == mounts["cache"]["mountPath"]
    (key,) = [each["secret"] for each in pod()["volumes"] if "secret" in each]
    file = f"{mounts['checkpoint-key']['mountPath']}/{key['items'][0]['path']}"
    assert values["VELO_CHECKPOINT_KEY_FILE"] == file


def test_pods_have_no_rights():
    assert pod()["securityContext"]["runAsNonRoot"]
    assert pod()["automountServiceAccountToken"] is False
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert option("--workers") == container()["resources"]["limits"]["cpu"]
