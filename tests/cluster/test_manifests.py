"""cluster/*.yaml and the Containerfile, checked offline: by Ray's own schema, by Kubernetes' schemas, and against each other and the package."""

import copy
import re
import shlex
import subprocess
import tomllib

import kubernetes_validate
import pytest
import yaml
from loopback import CLUSTER, ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

from mucd_ray.cli import build_parser

KUBERNETES = "1.31"
# Fields of KubeRay 1.6 (ray.io/v1); those of pods are Kubernetes' own.
FIELDS = {
    "RayCluster": {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions", "headGroupSpec", "workerGroupSpecs"},
    "RayJob": {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"},
    "autoscaler": {"idleTimeoutSeconds", "upscalingMode", "version", "resources"},
    "auth": {"mode", "secretName"},
    "head": {"rayStartParams", "template"},
    "worker": {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = f"mucd_ray:{PROJECT['version']}-ray{PINS['ray']}"


def load(name):
    return yaml.safe_load((CLUSTER / name).read_text())


def tracked():
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def cluster_specs():
    return {"raycluster.yaml": load("raycluster.yaml")["spec"], "rayjob.yaml": load("rayjob.yaml")["spec"]["rayClusterSpec"]}


def groups(spec):
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def gpus(group):
    return group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", "0")


@pytest.mark.parametrize("name", ["local.yaml", "aws-gpu.yaml"])
def test_ray_up_accepts_the_cluster(name):
    config = load(name)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    commands = [*prepared["head_start_ray_commands"], *prepared["worker_start_ray_commands"]]
    assert "cluster/start-head.sh" in commands[1] and "cluster/environment.sh && ray start" in commands[3]
    # Nothing of Ray's defaults may install another Ray or open the dashboard.
    assert prepared["setup_commands"] == config["setup_commands"] and not re.search(r"ray-wheels|dashboard-host", str(prepared))
    assert all(local in tracked() or any(file.startswith(f"{local}/") for file in tracked()) for local in config["file_mounts"].values() if not local.startswith("~"))


def test_on_aws_the_head_has_no_gpu_and_gpu_machines_come_from_none():
    config = prepare_config(load("aws-gpu.yaml"))
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert config["head_node_type"] == "head" and head["resources"] == {"CPU": 0, "GPU": 0}
    assert gpu["resources"]["GPU"] == 1 and gpu["min_workers"] == 0 and 0 < gpu["max_workers"] <= config["max_workers"]
    assert config["docker"]["image"] == IMAGE


@pytest.mark.parametrize("kind, name", [("RayCluster", "raycluster.yaml"), ("RayJob", "rayjob.yaml")])
def test_kuberay_manifests_have_known_fields_only(kind, name):
    manifest = load(name)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind) and set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(manifest["spec"]) <= FIELDS[kind]
    spec = cluster_specs()[name]
    assert set(spec) <= FIELDS["RayCluster"] and set(spec["autoscalerOptions"]) <= FIELDS["autoscaler"] and set(spec["authOptions"]) <= FIELDS["auth"]
    assert set(spec["headGroupSpec"]) <= FIELDS["head"] and all(set(group) <= FIELDS["worker"] for group in spec["workerGroupSpecs"])
    # Parameters of `ray start` are strings.
    assert all(isinstance(value, str) for group in groups(spec) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_pods_are_valid_and_agree(name):
    spec = cluster_specs()[name]
    pods = [group["template"] for group in groups(spec)]
    for pod in pods:
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", **pod["metadata"]}, "spec": pod["spec"]}, KUBERNETES, strict=True)
        (container,) = pod["spec"]["containers"]
        assert container["image"] == IMAGE and container["resources"]["requests"] == container["resources"]["limits"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"] and not container["securityContext"]["allowPrivilegeEscalation"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {"name": "metrics", "containerPort": 8080} in container["ports"]
    assert spec["rayVersion"] == PINS["ray"]
    assert all(group["rayStartParams"]["metrics-export-port"] == "8080" for group in groups(spec))
    for same in ("env", "volumeMounts", "securityContext"):
        assert all(pod["spec"]["containers"][0][same] == pods[0]["spec"]["containers"][0][same] for pod in pods)
    assert all(pod["metadata"] == pods[0]["metadata"] and pod["spec"]["volumes"] == pods[0]["spec"]["volumes"] for pod in pods)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_the_head_trains_nothing_and_workers_scale(name):
    spec = cluster_specs()[name]
    assert gpus(spec["headGroupSpec"]) == "0"
    assert (spec["headGroupSpec"]["rayStartParams"]["num-cpus"], spec["headGroupSpec"]["rayStartParams"]["num-gpus"]) == ("0", "0")
    workers = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert gpus(workers["gpu"]) == "1" and gpus(workers["cpu"]) == "0" and spec["enableInTreeAutoscaling"]
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in workers.values())


def test_both_manifests_describe_the_same_cluster():
    stays, job = cluster_specs().values()
    assert stays == job


@pytest.mark.parametrize("name", ["storage.yaml", "networkpolicy.yaml"])
def test_other_manifests_are_valid(name):
    kubernetes_validate.validate(load(name), KUBERNETES, strict=True)


def test_names_agree_between_the_manifests():
    volume = cluster_specs()["raycluster.yaml"]["headGroupSpec"]["template"]["spec"]["volumes"][0]
    assert volume["persistentVolumeClaim"]["claimName"] == load("storage.yaml")["metadata"]["name"]
    labels = cluster_specs()["raycluster.yaml"]["headGroupSpec"]["template"]["metadata"]["labels"]
    monitor, policy = load("podmonitor.yaml"), load("networkpolicy.yaml")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert monitor["spec"]["selector"]["matchLabels"] == policy["spec"]["podSelector"]["matchLabels"] == labels
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]
    assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule.get("ports", [])} == {8265, 8080}


def test_tokens_are_required_everywhere_and_written_nowhere():
    for spec in cluster_specs().values():
        assert spec["authOptions"] == {"mode": "token", "secretName": "mucd-ray-token"}
        for group in groups(spec):
            variables = {entry["name"]: entry for entry in group["template"]["spec"]["containers"][0]["env"]}
            assert variables["RAY_AUTH_MODE"]["value"] == "token"
            assert variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "mucd-ray-token", "key": "auth_token"}
    for file in CLUSTER.iterdir():
        text = file.read_text()
        # Long enough to be a token or a key; a private key's header; an AWS key.
        assert not re.search(r"[0-9a-f]{32}|[A-Za-z0-9+/]{60}|PRIVATE KEY|AKIA[0-9A-Z]{12}", text), file
        assert not re.search(r"kind: Secret\b|stringData", text), file


def test_pods_set_what_environment_sh_sets():
    exported = dict(re.findall(r"^export (RAY_grpc\w+|RAY_USAGE\w+|RAY_AUTH_MODE)=(\w+)$", (CLUSTER / "environment.sh").read_text(), re.M))
    variables = {entry["name"]: entry.get("value") for entry in cluster_specs()["raycluster.yaml"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]}
    assert len(exported) == 4 and exported.items() <= variables.items()


COMMAND = re.compile(r"python (?:/opt/mucd_ray/)?jobs/(\w+)\.py((?:[^\n`|]|\\\n)*)")


def commands():
    """(file, job, arguments) of every `python jobs/x.py ...` in cluster/."""
    texts = {file.name: file.read_text() for file in CLUSTER.iterdir()} | {"rayjob.yaml": load("rayjob.yaml")["spec"]["entrypoint"]}
    return [(name, match[1], shlex.split(match[2].replace("\\\n", " "))) for name, text in texts.items() for match in COMMAND.finditer(text)]


def test_every_job_exists_and_its_arguments_are_understood():
    found = commands()
    assert {name for name, _, _ in found} >= {"rayjob.yaml", "README.md"}
    parser = build_parser()
    for name, job, arguments in found:
        assert f"jobs/{job}.py" in tracked(), name
        assert arguments, f"{name}: a command without arguments"
        parser.parse_args([job, *arguments])
    (job,) = [arguments for name, _, arguments in found if name == "rayjob.yaml"]
    options = parser.parse_args(["run", *job])
    # Otherwise the job would be refused before the first GPU is there, or some trainers would be pending for ever.
    assert options.wait_for_nodes and options.actors * options.gpus_per_actor <= cluster_specs()["rayjob.yaml"]["workerGroupSpecs"][0]["maxReplicas"]


def instructions():
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Containerfile").read_text(), flags=re.M)
    return [line.split(maxsplit=1) for line in text.splitlines() if line]


def test_the_container_installs_as_the_makefile_does_and_runs_without_root():
    steps = instructions()
    assert steps[0] == ["FROM", "python:3.11-slim-bookworm"]
    files = tracked()
    for _, argument in (step for step in steps if step[0] == "COPY"):
        for source in argument.split()[:-1]:
            assert source in files or any(file.startswith(f"{source}/") for file in files), source
    pips = [argument for name, argument in steps if name == "RUN" and argument.startswith("pip")]
    makefile = re.findall(r"\$\(BIN\)/pip install --quiet (.*)", (ROOT / "Makefile").read_text())
    assert pips[0] == f'pip install --no-cache-dir ${{TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"}} {makefile[0]}'
    assert makefile[0] == f"torch=={PINS['torch']} -c constraints.txt" and makefile[1] == "-c constraints.txt -e '.[test]'"
    extras = re.fullmatch(r"pip install --no-cache-dir -c constraints.txt '\.\[([\w,]+)\]'", pips[1])[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert ["USER", "1000"] in steps and steps.index(["USER", "1000"]) > max(k for k, step in enumerate(steps) if step[0] == "RUN")
    assert not any("://" in argument for _, argument in steps)
    runtime = load("runtime_env.yaml")["env_vars"]
    assert runtime.items() <= dict(pair.split("=") for pair in next(argument for name, argument in steps if name == "ENV").split()).items()


def test_on_premise_machines_install_as_the_container_does():
    torch, package = load("local.yaml")["setup_commands"][1:]
    pips = [argument for name, argument in instructions() if argument.startswith("pip")]
    assert f"torch=={PINS['torch']} -c ~/mucd_ray/constraints.txt" in torch
    assert re.search(r"\[[\w,]+\]", package)[0] == re.search(r"\[[\w,]+\]", pips[1])[0]
