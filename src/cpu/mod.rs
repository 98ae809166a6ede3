//! The CPU backend: the specification of every op, and its fast path.
