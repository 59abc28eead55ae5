"""A chip of another maker: four devices per host, a visibility variable and collectives of its own."""
