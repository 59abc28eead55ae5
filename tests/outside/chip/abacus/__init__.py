"""A chip from another vendor: four devices per host, with its own visibility variable and collectives."""
