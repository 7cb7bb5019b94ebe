"""infra/ held against schemas and against the rest of the project; nothing here needs a container engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.templating import apply_values
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).parents[2]
INFRA = REPOSITORY / "infra"
COMPOSE = [INFRA / "compose/compose.yaml", INFRA / "compose/compose.gpu.yaml"]
MANIFESTS = sorted(set((INFRA / "kubernetes").glob("*.yaml")) - {INFRA / "kubernetes/kustomization.yaml"})
SCRIPTS = sorted(INFRA.rglob("*.sh"))
BIN = Path(sys.executable).parent
KUBERNETES = "1.34"


def run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def values(node: Any, key: str) -> Iterator[Any]:
    """What stands under ``key`` anywhere below ``node``."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from values(item, key)


def flow_run_job() -> dict[str, Any]:
    """The Job that the Kubernetes worker makes of work-pool.json, by Prefect's own code."""
    template = json.loads((INFRA / "kubernetes/work-pool.json").read_text())
    defaults = KubernetesWorkerJobConfiguration._get_base_config_defaults(template["variables"]["properties"])
    config = KubernetesWorkerJobConfiguration.model_validate(apply_values(template["job_configuration"], defaults))
    config.prepare_for_flow_run(FlowRun(flow_id=uuid.uuid4(), name="a-run"))
    job: dict[str, Any] = config.job_manifest
    job["metadata"]["name"] = job["metadata"].pop("generateName") + "x"  # as the API server does
    return job


def pods() -> dict[str, dict[str, Any]]:
    """Every pod template of infra/kubernetes, also those inside custom resources and the flow runs' Jobs."""
    found = {
        f"{file.stem}/{document['metadata'].get('name', '')}{number}": template
        for file in MANIFESTS
        for document in documents(file)
        for number, template in enumerate(values(document.get("spec", {}), "template"))
    }
    return found | {"flow run": flow_run_job()["spec"]["template"]}


class TestImage:
    def test_dockerfile(self) -> None:
        assert run(BIN / "hadolint", INFRA / "image/Dockerfile") == ""

    def test_what_it_copies_is_there_and_sent(self) -> None:
        text = (INFRA / "image/Dockerfile").read_text()
        sent = (REPOSITORY / ".dockerignore").read_text().splitlines()
        for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
            for source in line.split()[:-1]:
                assert (REPOSITORY / source).exists()
                assert f"!{source}" in sent

    def test_is_pinned_and_runs_as_nobody_special(self) -> None:
        text = (INFRA / "image/Dockerfile").read_text()
        assert re.search(r"^USER 1000$", text, re.MULTILINE)
        installs = [line for line in text.splitlines() if "pip install" in line]
        assert all("--constraint requirements.lock" in line or "--no-deps" in line for line in installs)


class TestCompose:
    @pytest.mark.parametrize("file", COMPOSE, ids=lambda file: file.name)
    def test_schema(self, file: Path) -> None:
        run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)

    def test_services_refer_to_each_other(self) -> None:
        compose = yaml.safe_load(COMPOSE[0].read_text())
        services = compose["services"]
        for name, service in services.items():
            assert set(service.get("depends_on", {})) <= set(services), name
            for host in re.findall(r"(?:https?://|@)([a-z0-9-]+):", json.dumps(service.get("environment", {}))):
                assert host in {*services, "127"}, f"{name}: {host}"
            assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}, name
            assert "healthcheck" in service, name
            for port in service.get("ports", []):
                assert port.startswith("127.0.0.1:"), f"{name}: {port}"
            for volume in service.get("volumes", []):
                source = volume.partition(":")[0]
                assert source.startswith("${") or source in compose["volumes"], f"{name}: {volume}"
        assert set(yaml.safe_load(COMPOSE[1].read_text())["services"]) <= set(services)

    def test_every_variable_is_in_the_example_and_no_secret_is(self) -> None:
        wanted = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE[0].read_text())) - {"BTINET_DATA_ROOT"}
        lines = (INFRA / "compose/.env.example").read_text().splitlines()
        given = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
        assert wanted == set(given)
        assert not any(given[name] for name in given if name.endswith(("PASSWORD", "TOKEN", "SECRET_ACCESS_KEY")))


class TestKubernetes:
    @pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
    def test_schema(self, file: Path) -> None:
        printed = run(BIN / "kubernetes-validate", "--strict", "-k", KUBERNETES, file)
        unknown = re.findall(r"Couldn't find schema for kind (\w+)", printed)
        assert set(unknown) <= {"RayCluster", "RayJob"}, printed

    def test_pods_of_custom_resources_and_flow_runs(self, tmp_path: Path) -> None:
        found = pods()
        assert len(found) == 8  # 3 of our services, head and workers of a RayCluster and a RayJob, a flow run
        for name, template in found.items():
            file = tmp_path / f"{name.replace('/', '-')}.yaml"
            metadata = template.get("metadata", {}) | {"name": "x"}
            file.write_text(
                yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
            )
            assert "passed" in run(BIN / "kubernetes-validate", "--strict", "-k", KUBERNETES, file)

    def test_flow_run_job(self, tmp_path: Path) -> None:
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(flow_run_job()))
        assert "passed" in run(BIN / "kubernetes-validate", "--strict", "-k", KUBERNETES, tmp_path / "job.yaml")

    def test_pods_are_restricted(self) -> None:
        """What the namespace's policy `restricted` asks for, and limits."""
        for name, template in pods().items():
            spec = template["spec"]
            assert spec["securityContext"]["runAsNonRoot"] is True, name
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
            assert "serviceAccountName" in spec or spec["automountServiceAccountToken"] is False, name
            for container in spec["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
                assert container["resources"]["limits"].keys() >= {"cpu", "memory"}, name

    def test_names_resolve(self) -> None:
        """ConfigMaps, services and labels of policies exist; Secrets are those that docs/cluster.md creates."""
        everything = [document for file in MANIFESTS for document in documents(file)]
        names = {(document["kind"], document["metadata"].get("name")) for document in everything}
        guide = (REPOSITORY / "docs/cluster.md").read_text()
        tree = [everything, flow_run_job()]
        for reference in values(tree, "configMapRef"):
            assert ("ConfigMap", reference["name"]) in names
        secrets = {reference["name"] for key in ("secretRef", "secretKeyRef") for reference in values(tree, key)}
        secrets |= set(values(tree, "secretName"))
        for secret in secrets:
            assert f"create secret generic {secret}" in guide
        labels = {template["metadata"]["labels"]["app"] for template in pods().values()}
        policies = [document for document in everything if document["kind"] == "NetworkPolicy"]
        assert set(values(policies, "app")) <= labels
        listed = yaml.safe_load((INFRA / "kubernetes/kustomization.yaml").read_text())["resources"]
        assert sorted(listed) == sorted(file.name for file in MANIFESTS if file.name != "ray-job.yaml")

    def test_ray_version_is_the_installed_one(self) -> None:
        assert set(values([documents(file) for file in MANIFESTS], "rayVersion")) == {ray.__version__}


@pytest.mark.parametrize("name", ["local", "aws"])
def test_launcher_file(name: str) -> None:
    """By the launcher's own code, which knows more than its schema."""
    validate_config(prepare_config(yaml.safe_load((INFRA / f"ray/{name}.yaml").read_text())))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_script(script: Path) -> None:
    """It parses, and what it calls in .venv exists."""
    run("bash", "-n", script)
    assert script.stat().st_mode & 0o111
    for command in re.findall(r"\.venv/bin/([a-z]+)", script.read_text()):
        assert (BIN / command).exists()
