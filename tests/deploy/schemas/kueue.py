"""ResourceFlavor, ClusterQueue and LocalQueue of Kueue 0.19, as far as the manifests use them."""

from __future__ import annotations

from tests.deploy.schemas.parts import QUANTITY, STRING, STRINGS, fields, items, one_of, resource, ruled

_VERSION = "kueue.x-k8s.io/v1beta2"

_QUOTA = fields("name nominalQuota", name=STRING, nominalQuota=QUANTITY)

_GROUP = ruled(
    fields(
        "coveredResources flavors",
        coveredResources=items(STRING, least=1),
        flavors=items(fields("name resources", name=STRING, resources=items(_QUOTA, least=1)), least=1),
    ),
    "self.flavors.all(flavor, flavor.resources.map(quota, quota.name) == self.coveredResources)",
    "each flavor has a quota of each covered resource, in their order",
)

RESOURCE_FLAVOR = resource(_VERSION, "ResourceFlavor", fields("nodeLabels", nodeLabels=STRINGS))
LOCAL_QUEUE = resource(_VERSION, "LocalQueue", fields("clusterQueue", clusterQueue=STRING))
CLUSTER_QUEUE = resource(
    _VERSION,
    "ClusterQueue",
    fields(
        "namespaceSelector resourceGroups",
        namespaceSelector=fields("matchLabels", matchLabels=STRINGS),
        queueingStrategy=one_of("StrictFIFO", "BestEffortFIFO"),
        resourceGroups=items(_GROUP, least=1),
    ),
)
