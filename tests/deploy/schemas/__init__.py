"""Compact schemas of the custom resources that the manifests use.

They are this project's own, and partial: the fields in use and their types, of KubeRay 1.7 and Kueue 0.19, and nothing
else, so that a misspelt key is refused; and what the operators check beyond types, as rules in CEL. What is a pod
template or a part of one is validated by Kubernetes' own schema (`tests/deploy/strict.py`). The whole is in the
operators' definitions: where you have those, validate against them too, by `tests/deploy/against_crds.py`.
"""
