"""Prove: certificates, TLS contexts and tokens; opens no socket, knows no Consul."""
