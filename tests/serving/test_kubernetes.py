"""The manifests in `deploy/`: of the schema of Kubernetes, and fitting what they run."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.cli.main import build_parser
from bootpig_rt.server.config import options_of_table
from bootpig_rt.server.stack import ACCESS
from bootpig_rt.serving.ray_options import ray_options

yaml = pytest.importorskip("yaml")

VERSIONS = ("1.31", "1.33", "1.35")


def documents(folder: Path) -> dict[str, Any]:
    """All documents of a folder by their kind; kustomizations are no resources."""
    found = [
        one
        for file in sorted(folder.glob("*.yaml"))
        for one in yaml.safe_load_all(file.read_text())
    ]
    return {one["kind"]: one for one in found if one["kind"] != "Kustomization"}


@pytest.fixture(scope="module")
def plain(root: Path) -> dict[str, Any]:
    """Manifests of the service on CPUs."""
    return documents(root / "deploy" / "kubernetes")


@pytest.fixture(scope="module")
def gpu(root: Path, plain: dict[str, Any]) -> dict[str, Any]:
    """The same with the patches for GPUs."""
    patches = documents(root / "deploy" / "kubernetes" / "gpu")
    return {kind: merged(one, patches.get(kind, {})) for kind, one in plain.items()}


@pytest.fixture(scope="module")
def ray_service(root: Path) -> Any:
    """The service over KubeRay."""
    return yaml.safe_load((root / "deploy" / "ray" / "rayservice.yaml").read_text())


def merged(base: Any, patch: Any) -> Any:
    """A strategic merge, as far as the patches here need it: lists are merged by name."""
    if isinstance(base, dict) and isinstance(patch, dict):
        names = {**base, **patch}
        return {
            name: merged(base[name], patch[name]) if name in base and name in patch else names[name]
            for name in names
        }
    is_named = isinstance(base, list) and all("name" in one for one in [*base, *patch])
    if is_named and base:
        by_name = {one["name"]: one for one in base}
        return list(merged(by_name, {one["name"]: one for one in patch}).values())
    return patch


def check(resource: Any, version: str) -> None:
    """Raise where a resource is not of the schema; unknown fields are not, either."""
    validate = pytest.importorskip("kubernetes_validate").validate
    validate(resource, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("which", ["plain", "gpu"])
def test_manifests_are_of_the_schema_of_kubernetes(
    request: pytest.FixtureRequest, which: str, version: str
) -> None:
    resources = request.getfixturevalue(which)
    assert set(resources) == {
        "ConfigMap",
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
    }
    for resource in resources.values():
        check(resource, version)


def test_a_field_that_there_is_not_would_be_found(plain: dict[str, Any]) -> None:
    broken = merged(plain["Deployment"], {"spec": {"replicaz": 2}})
    with pytest.raises(Exception, match="replicaz"):
        check(broken, VERSIONS[0])


def container(resources: dict[str, Any]) -> Any:
    (only,) = resources["Deployment"]["spec"]["template"]["spec"]["containers"]
    return only


def test_kustomizations_name_every_file_and_no_other(root: Path) -> None:
    folder = root / "deploy" / "kubernetes"
    told = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert sorted([*told, "kustomization.yaml"]) == sorted(p.name for p in folder.glob("*.yaml"))
    patches = yaml.safe_load((folder / "gpu" / "kustomization.yaml").read_text())["patches"]
    assert {one["path"] for one in patches} == {"deployment.yaml", "autoscaler.yaml"}


def test_the_configuration_is_one_of_the_service(plain: dict[str, Any]) -> None:
    options = options_of_table("the map", tomllib.loads(plain["ConfigMap"]["data"]["serve.toml"]))
    assert options.keys is not None
    assert not options.insecure
    ports = container(plain)["ports"]
    assert [one["containerPort"] for one in ports] == [options.port]
    mounts = {one["mountPath"] for one in container(plain)["volumeMounts"]}
    for path in (options.keys, options.subject_folder, options.store):
        assert any(str(path).startswith(mount) for mount in mounts)


@pytest.mark.parametrize("which", ["plain", "gpu"])
def test_arguments_are_those_of_the_command(request: pytest.FixtureRequest, which: str) -> None:
    args = container(request.getfixturevalue(which))["args"]
    build_parser(["serve"]).parse_args(["serve", *args])
    names = {one["name"] for one in container(request.getfixturevalue(which))["env"]}
    option = "BOOTPIG_RT_OPTION_ALLOWED_HOSTS"
    assert option in names


@pytest.mark.parametrize("which", ["plain", "gpu"])
def test_pods_may_do_little(request: pytest.FixtureRequest, which: str) -> None:
    resources = request.getfixturevalue(which)
    pod, one = resources["Deployment"]["spec"]["template"]["spec"], container(resources)
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert not pod["automountServiceAccountToken"]
    assert one["securityContext"]["readOnlyRootFilesystem"]
    assert not one["securityContext"]["allowPrivilegeEscalation"]
    assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"cpu", "memory"} <= set(one["resources"]["requests"])
    assert "memory" in one["resources"]["limits"]
    policy = resources["NetworkPolicy"]["spec"]
    assert policy["egress"] == []
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}


def test_a_pod_has_longer_to_end_than_it_drains(plain: dict[str, Any]) -> None:
    options = options_of_table("the map", tomllib.loads(plain["ConfigMap"]["data"]["serve.toml"]))
    pod = plain["Deployment"]["spec"]["template"]["spec"]
    (_, pause_s) = container(plain)["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > options.drain_s + int(pause_s) + 5


def test_probes_ask_what_needs_no_key(plain: dict[str, Any]) -> None:
    one = container(plain)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert ACCESS[f"GET {one[probe]['httpGet']['path']}"] == "public"
    # Liveness must not end a pod that is only loading, or busy.
    assert one["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert one["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_all_select_the_pods_of_the_deployment(plain: dict[str, Any]) -> None:
    spec = plain["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert plain["Service"]["spec"]["selector"].items() <= labels.items()
    for kind, name in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        assert plain[kind]["spec"][name]["matchLabels"].items() <= labels.items()
    scaled = plain["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == (
        "Deployment",
        plain["Deployment"]["metadata"]["name"],
    )
    assert "replicas" not in spec  # the autoscaler's


def test_gpus_are_asked_for_one_by_one(gpu: dict[str, Any]) -> None:
    assert container(gpu)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container(gpu)["image"].endswith("-cuda")
    (metric,) = gpu["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "bootpig_queue_pictures"


def test_the_serve_config_of_kuberay_is_one_that_ray_takes(ray_service: Any) -> None:
    schema = pytest.importorskip("ray.serve.schema").ServeDeploySchema
    config = schema.model_validate(yaml.safe_load(ray_service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    options = ray_options(dict(application.args))
    (group,) = ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert options.max_replicas == group["maxReplicas"]
    assert options.num_gpus == 1
    pod = group["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > options.server.drain_s + 5
    mounts = {one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
    assert any(str(options.server.keys).startswith(mount) for mount in mounts)
    assert any(str(options.server.model).startswith(mount) for mount in mounts)
    import ray

    assert ray_service["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__


@pytest.mark.parametrize("version", VERSIONS)
def test_pods_of_kuberay_are_of_the_schema_of_kubernetes(ray_service: Any, version: str) -> None:
    cluster = ray_service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        check(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}} | group["template"],
            version,
        )
