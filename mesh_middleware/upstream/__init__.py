"""Call: requests to other services of the mesh."""
