"""Gates on what serving takes: latency, memory, size of the adapter."""

from components.promotion.gates.base import Context, require_limit
from components.records.outcomes import Finding

BYTES_PER_MB = 1_000_000


def check_latency(context: Context) -> Finding | None:
    """Is one image answered fast enough here?"""
    limit = context.domain.gates.max_latency_ms
    if limit is None:
        return None
    took = context.serving["latency_ms_p50"]
    return require_limit("latency", f"One image takes {took:.3g} ms", {"latency_ms_p50": took, "max_latency_ms": limit})


def check_memory(context: Context) -> Finding | None:
    """Does the model that serves fit into the memory there is?"""
    limit = context.domain.gates.max_memory_mb
    if limit is None:
        return None
    took = context.serving["memory_mb"]
    return require_limit("memory", f"Serving takes {took:.0f} MB", {"memory_mb": took, "max_memory_mb": limit})


def check_size(context: Context) -> Finding | None:
    """Does the adapter fit the limit of whoever deploys it?"""
    limit = context.domain.gates.max_adapter_mb
    if limit is None:
        return None
    size = context.adapter_bytes / BYTES_PER_MB
    return require_limit("size", f"The adapter takes {size:.3g} MB", {"adapter_mb": size, "max_adapter_mb": limit})
