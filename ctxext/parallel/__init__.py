"""Many devices and many processes: the mesh, its sharding rules, and collective helpers."""
