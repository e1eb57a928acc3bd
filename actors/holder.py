"""An actor that reserves a name on the cluster and does nothing else."""


class Holder:
    """Reserves its name until it is killed, or the driver that made it ends."""
