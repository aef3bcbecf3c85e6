"""The bundled protocols, one YAML file each."""
