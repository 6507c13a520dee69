from lifelong.errors import UserError, nearest

__all__ = ["UserError", "nearest"]
