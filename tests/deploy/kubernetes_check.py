"""Run in an environment with the Kubernetes client: `kubernetes_check.py FILE...` reads manifests and
compares every field with the client's models. Prints JSON `{"problems": [...], "manifests": [...]}`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

MODELS = {
    ("apps/v1", "Deployment"): "V1Deployment",
    ("v1", "Service"): "V1Service",
    ("v1", "ConfigMap"): "V1ConfigMap",
    ("policy/v1", "PodDisruptionBudget"): "V1PodDisruptionBudget",
}
NO_MODEL = {"ServiceMonitor", "Kustomization"}
"""Kinds that the client does not know: custom resources, and files for kubectl."""
SIMPLE = {
    "str": str,
    "int": int,
    "bool": bool,
    "float": (int, float),
    "object": object,
    "datetime": str,
    "bytes": str,
}


def problems(value: Any, kind: str, where: str) -> list[str]:
    """What does not fit the model called `kind`."""
    if match := re.fullmatch(r"List\[(.*)\]", kind):
        if not isinstance(value, list):
            return [f"{where}: expected a list"]
        return [p for i, entry in enumerate(value) for p in problems(entry, match[1], f"{where}[{i}]")]
    if match := re.fullmatch(r"Dict\[str, (.*)\]", kind):
        if not isinstance(value, dict):
            return [f"{where}: expected a map"]
        return [p for key, entry in value.items() for p in problems(entry, match[1], f"{where}.{key}")]
    if kind in SIMPLE:
        good = isinstance(value, SIMPLE[kind]) and not (kind == "int" and isinstance(value, bool))
        return [] if good else [f"{where}: expected {kind}, not {value!r}"]
    model = getattr(client, kind)
    if not isinstance(value, dict):
        return [f"{where}: expected a map"]
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    found = [f"{where}: unknown field {key!r}" for key in value if key not in names]
    for json_name, name in names.items():
        if json_name in value:
            found += problems(value[json_name], model.openapi_types[name], f"{where}.{json_name}")
        elif (field := model.model_fields.get(name)) is not None and field.is_required():
            found.append(f"{where}: field {json_name!r} is missing")
    return found


def main() -> None:
    found: list[str] = []
    manifests = []
    for name in sys.argv[1:]:
        for manifest in yaml.safe_load_all(Path(name).read_text()):
            manifests.append(manifest)
            key = (manifest.get("apiVersion"), manifest.get("kind"))
            if key in MODELS:
                found += problems(manifest, MODELS[key], f"{name}")
            elif manifest.get("kind") not in NO_MODEL:
                found.append(f"{name}: unknown kind {key}")
    print(json.dumps({"problems": found, "manifests": manifests}))


if __name__ == "__main__":
    main()
