"""HTTP endpoints, and servers placed on a Ray cluster."""
