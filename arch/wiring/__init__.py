"""How the parts of a place join the residual stream: a file each, which exports
Block(place, cfg, *, layer, rngs); see arch/law.py."""
