"""An actor that does nothing: as long as it lives, its name is taken."""


class Holder:
    """Holds its name on the cluster until it is killed, or the driver that made it ends."""
