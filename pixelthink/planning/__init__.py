"""How much memory a run needs, found out before it is paid for."""
