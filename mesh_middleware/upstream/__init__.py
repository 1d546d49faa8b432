"""Call: requests and connections to other services of the mesh."""
