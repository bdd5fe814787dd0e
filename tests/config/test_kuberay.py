"""The manifest for Kubernetes: its fields exist, its parts name each other, and its configuration loads.

No cluster is asked. The schema below lists the fields that KubeRay's RayCluster (ray.io/v1) and pods have, as far as
the manifest could use them.
"""

from pathlib import Path

import jsonschema
import yaml

from tests.config.loading import LoadCase

MANIFEST = Path(__file__).parents[2] / "config" / "kuberay" / "raycluster.yaml"


def fields(*required, **known):
    """An object with these fields and no others."""
    return {"type": "object", "properties": known, "required": list(required), "additionalProperties": False}


def many(item):
    return {"type": "array", "items": item, "minItems": 1}


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = fields("name", name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
SOURCE = fields(
    fieldRef=fields("fieldPath", fieldPath={"enum": ["status.podIP", "metadata.name", "metadata.namespace"]}),
    secretKeyRef=fields("name", "key", name=TEXT, key=TEXT, optional={"type": "boolean"}),
)
PROBE = fields(
    httpGet=fields("port", path=TEXT, port=COUNT, scheme=TEXT),
    tcpSocket=fields("port", port=COUNT),
    exec=fields("command", command=many(TEXT)),
    initialDelaySeconds=COUNT,
    periodSeconds=COUNT,
    timeoutSeconds=COUNT,
    failureThreshold=COUNT,
)
CONTAINER = fields(
    "name",
    "image",
    name=TEXT,
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    command=many(TEXT),
    args=many(TEXT),
    env=many(fields("name", name=TEXT, value={"type": "string"}, valueFrom=SOURCE)),
    ports=many(fields("containerPort", name={"type": "string", "maxLength": 15}, containerPort=COUNT, protocol=TEXT)),
    readinessProbe=PROBE,
    livenessProbe=PROBE,
    resources=fields(requests=TEXTS, limits=TEXTS),
    securityContext={"type": "object"},
    volumeMounts=many(
        fields("name", "mountPath", name=TEXT, mountPath=TEXT, readOnly={"type": "boolean"}, subPath=TEXT)
    ),
)
VOLUME = fields(
    "name",
    name=TEXT,
    configMap=fields("name", name=TEXT),
    secret=fields("secretName", secretName=TEXT, defaultMode=COUNT),
    emptyDir=fields(medium=TEXT, sizeLimit=TEXT),
    persistentVolumeClaim=fields("claimName", claimName=TEXT, readOnly={"type": "boolean"}),
)
TEMPLATE = fields(
    "spec",
    metadata=fields(labels=TEXTS, annotations=TEXTS),
    spec=fields(
        "containers",
        containers=many(CONTAINER),
        volumes=many(VOLUME),
        nodeSelector=TEXTS,
        tolerations={"type": "array"},
        affinity={"type": "object"},
        serviceAccountName=TEXT,
        terminationGracePeriodSeconds=COUNT,
    ),
)
RAY_CLUSTER = fields(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=METADATA,
    spec=fields(
        "headGroupSpec",
        "rayVersion",
        rayVersion=TEXT,
        suspend={"type": "boolean"},
        enableInTreeAutoscaling={"type": "boolean"},
        authOptions=fields("mode", mode={"enum": ["token", "disabled"]}, secretName=TEXT),
        headGroupSpec=fields(
            "rayStartParams",
            "template",
            serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
            enableIngress={"type": "boolean"},
            rayStartParams=TEXTS,
            template=TEMPLATE,
        ),
        workerGroupSpecs=many(
            fields(
                "groupName",
                "replicas",
                "minReplicas",
                "maxReplicas",
                "rayStartParams",
                "template",
                groupName=TEXT,
                replicas=COUNT,
                minReplicas=COUNT,
                maxReplicas=COUNT,
                rayStartParams=TEXTS,
                template=TEMPLATE,
            )
        ),
    ),
)
CONFIG_MAP = fields(
    "apiVersion",
    "kind",
    "metadata",
    "data",
    apiVersion={"const": "v1"},
    kind={"const": "ConfigMap"},
    metadata=METADATA,
    data=TEXTS,
)


class ManifestTests(LoadCase):
    def setUp(self):
        self.config_map, self.cluster = yaml.safe_load_all(MANIFEST.read_text())
        groups = [self.cluster["spec"]["headGroupSpec"], *self.cluster["spec"]["workerGroupSpecs"]]
        self.pods = [group["template"]["spec"] for group in groups]

    def test_fields_are_those_of_kuberay_and_of_pods(self):
        for schema, document in ((CONFIG_MAP, self.config_map), (RAY_CLUSTER, self.cluster)):
            errors = jsonschema.Draft7Validator(schema).iter_errors(document)
            self.assertEqual([error.message for error in errors], [])

    def test_mistyped_field_would_be_found(self):
        self.cluster["spec"]["headGroupSpec"]["template"]["spec"]["volume"] = []
        self.assertFalse(jsonschema.Draft7Validator(RAY_CLUSTER).is_valid(self.cluster))

    def test_each_container_has_probes_of_its_own(self):
        """KubeRay adds those of Ray's dashboard to a container without probes, and the pod is restarted for ever."""
        for pod in self.pods:
            [container] = pod["containers"]
            self.assertLessEqual({"readinessProbe", "livenessProbe"}, container.keys())

    def test_names_of_volumes_of_the_map_and_of_the_secret_fit_together(self):
        secrets = {self.cluster["spec"]["authOptions"]["secretName"]}
        for pod in self.pods:
            [container] = pod["containers"]
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            self.assertEqual(mounts, {volume["name"] for volume in pod["volumes"]})
            maps = {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
            self.assertLessEqual(maps, {self.config_map["metadata"]["name"]})
            sources = [entry["valueFrom"] for entry in container["env"] if "valueFrom" in entry]
            secrets.update(source["secretKeyRef"]["name"] for source in sources if "secretKeyRef" in source)
        self.assertEqual(secrets, {"llamaswap-hosts"})

    def test_configuration_loads_without_a_warning_and_its_labels_are_given_to_hosts(self):
        config = self.ok(self.config_map["data"]["config.yaml"])
        self.assertEqual(self.loaded.warnings, ())
        self.assertIn(config.hosts.state, self.pods[0]["containers"][0]["args"][0])
        joined = self.pods[1]["containers"][0]["args"][0]
        for model in config.models.values():
            for label, value in model.place.labels.items():
                self.assertIn(f"--label {label}={value}", joined)
