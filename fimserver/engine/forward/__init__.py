"""Forward passes over a KV cache: layers, int8, adapters, static buffers, costs."""
