"""Native forms of the pruning ops: the binding of their C API, where built libraries lie, and how they are built."""
