"""Batches whose rows belong to different adapters on one backbone, in one forward.

An adapter is data here: a row of a pool's matrix, not a network. Rows of a batch are sorted so that those of one pool
lie together, a span; the backbone's matrices see the whole batch, and each span adds what its adapters change.

    pools.py      adapters of one form, as rows of matrices
    forward.py    the forward over spans
    prompted.py   linear, vpt, vapt: a span has keys and values of its own
    tuned.py      lora, dora, ssf, bitfit, adaptformer: a span changes what the shared modules put out
    side.py       dtl: a span has a side network, and rows of one picture share the blocks below it
    families.py   which family computes which tuner

The families have forwards of their own, because the precision of their residual streams differs: rows are computed as
the adapters were trained and judged.
"""
