"""How long tests wait for what must come. Only a hang takes that long, however busy the machine is."""

PATIENCE = 60.0  # seconds
