"""What the mesh is told of changes, through etcd."""
