"""Learn: everything that talks to a Consul agent."""
