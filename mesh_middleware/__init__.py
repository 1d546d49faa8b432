"""Native Consul service mesh for Python: mTLS and layer-7 intentions without a sidecar."""
