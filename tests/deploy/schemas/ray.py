"""RayCluster of KubeRay 1.7, as far as the manifests use it."""

from __future__ import annotations

from tests.deploy.schemas.parts import (
    BOOLEAN,
    INTEGER,
    OF_KUBERNETES,
    QUANTITY,
    STRING,
    STRINGS,
    fields,
    items,
    one_of,
    resource,
    ruled,
)

_SECRET_KEY = fields("name key", name=STRING, key=STRING)

_FAULT_TOLERANCE = ruled(
    fields(
        "backend",
        backend=one_of("redis", "rocksdb"),
        redisAddress=STRING,
        redisPassword=fields("valueFrom", valueFrom=fields("secretKeyRef", secretKeyRef=_SECRET_KEY)),
        storage=fields(
            "", size=QUANTITY, storageClassName=STRING, deletionPolicy=one_of("DeleteWithCluster", "Retain")
        ),
    ),
    "(self.backend == 'redis') == has(self.redisAddress) && (self.backend == 'redis' ? !has(self.storage)"
    " : !has(self.redisPassword))",
    "Redis has an address, RocksDB a volume",
)

_AUTOSCALER = fields(
    "version",
    version=one_of("v1", "v2"),
    idleTimeoutSeconds=INTEGER,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    resources=OF_KUBERNETES,
    securityContext=OF_KUBERNETES,
)

_WORKERS = ruled(
    fields(
        "groupName replicas minReplicas maxReplicas rayStartParams template",
        groupName={"type": "string", "not": {"const": "head"}},
        replicas=INTEGER,
        minReplicas=INTEGER,
        maxReplicas=INTEGER,
        rayStartParams=STRINGS,
        template=OF_KUBERNETES,
    ),
    "self.minReplicas <= self.replicas && self.replicas <= self.maxReplicas",
    "replicas lie between the least and the most",
)

RAY_CLUSTER = resource(
    "ray.io/v1",
    "RayCluster",
    fields(
        "rayVersion authOptions headGroupSpec",
        rayVersion=STRING,
        authOptions=fields("mode", mode=one_of("token"), secretName=STRING),
        enableInTreeAutoscaling=BOOLEAN,
        autoscalerOptions=_AUTOSCALER,
        gcsFaultToleranceOptions=_FAULT_TOLERANCE,
        headGroupSpec=fields("rayStartParams template", rayStartParams=STRINGS, template=OF_KUBERNETES),
        workerGroupSpecs=items(_WORKERS),
    ),
)
