"""What the YAML files of launch/ may hold: the parts of their APIs' schemas that they use.

Sources: Kubernetes' batch/v1 and core/v1, JobSet's v1alpha2, SkyPilot's task YAML. A schema is a
type, `[schema]` for a list, `{name: schema}` for an object, or `{"*": schema}` for any names.
"""

from typing import Any

TEXTS = {"*": str}
META = {"name": str, "annotations": TEXTS, "labels": TEXTS}
QUANTITIES = {"*": int}
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}],
    "resources": {"requests": QUANTITIES, "limits": QUANTITIES},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
POD = {
    "restartPolicy": str,
    "serviceAccountName": str,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": TEXTS,
    "tolerations": [{"key": str, "operator": str, "effect": str}],
    "containers": [CONTAINER],
    "volumes": [
        {
            "name": str,
            "csi": {"driver": str, "volumeAttributes": TEXTS},
            "emptyDir": {"medium": str},
        }
    ],
}
JOB = {
    "parallelism": int,
    "completions": int,
    "backoffLimit": int,
    "podFailurePolicy": {
        "rules": [
            {
                "action": str,
                "onExitCodes": {"containerName": str, "operator": str, "values": [int]},
            }
        ]
    },
    "template": {"metadata": META, "spec": POD},
}
JOBSET = {
    "apiVersion": str,
    "kind": str,
    "metadata": META,
    "spec": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name": str, "action": str, "onJobFailureReasons": [str]}],
        },
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}
SKY = {
    "name": str,
    "num_nodes": int,
    "workdir": str,
    "resources": {
        "accelerators": str,
        "use_spot": bool,
        "job_recovery": {"recover_on_exit_codes": [int]},
    },
    "envs": TEXTS,
    "file_mounts": {"*": {"name": str, "mode": str}},
    "setup": str,
    "run": str,
}


def misfits(value: Any, schema: Any, path: str = "") -> list[str]:
    """What the schema does not know, or has another type, by its path; nothing where all fits."""
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{path} is {value!r}, not {schema.__name__}"]
    if type(value) is not type(schema):
        return [f"{path} is {value!r}, not {type(schema).__name__}"]
    if isinstance(schema, list):
        parts = [(f"{path}[{i}]", item, schema[0]) for i, item in enumerate(value)]
    else:
        known = {name: schema.get(name, schema.get("*")) for name in value}
        unknown = [f"{path}.{name} is unknown" for name, one in known.items() if one is None]
        if unknown:
            return unknown
        parts = [(f"{path}.{name}", value[name], one) for name, one in known.items()]
    return [text for part in parts for text in misfits(part[1], part[2], part[0])]
