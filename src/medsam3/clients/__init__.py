"""Functions that other tools load into their own process; what asks over HTTP is in `medsam3.server.clients`."""
